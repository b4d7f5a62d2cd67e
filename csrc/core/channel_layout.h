// Where the channels of a dense tensor lie in memory. Torch-free.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace bitsplit {

// Memory as [outer, channels, inner]: element i belongs to channel (i / inner) % channels. A whole tensor is
// one channel: {1, 1, numel}. All three are at least 1.
struct ChannelLayout {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  BITSPLIT_HOST_DEVICE int64_t numel() const { return outer * channels * inner; }
};

// The channel of element i, i + step, i + 2 step, ... with two divisions in all instead of two per element.
class ChannelWalk {
 public:
  BITSPLIT_HOST_DEVICE ChannelWalk(const ChannelLayout& layout, int64_t start, int64_t step)
      : channels_(layout.channels),
        inner_(layout.inner),
        channel_(start / layout.inner % layout.channels),
        position_(start % layout.inner),
        channel_step_(step / layout.inner % layout.channels),
        position_step_(step % layout.inner) {}

  BITSPLIT_HOST_DEVICE int64_t channel() const { return channel_; }
  BITSPLIT_HOST_DEVICE int64_t position() const { return position_; }  // within the run of the channel

  BITSPLIT_HOST_DEVICE void advance() {
    position_ += position_step_;
    channel_ += channel_step_;
    if (position_ >= inner_) {
      position_ -= inner_;
      ++channel_;
    }
    if (channel_ >= channels_) channel_ -= channels_;
  }

 private:
  int64_t channels_, inner_;
  int64_t channel_, position_;
  int64_t channel_step_, position_step_;
};

}  // namespace bitsplit
