#include "ops/lane_sums_cpu.h"
#include "ops/loss/loss_dispatch.h"

namespace bitsplit {
namespace {

struct CpuLoss {
  template <typename T, typename Term>
  static void store_sum(const LossCall& call, const Term& term) {
    *call.loss.mutable_data_ptr<double>() = call.scale * sum_of_terms<T>(call.output.numel(), term);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { LossOperator<CpuLoss>::implement(m); }

}  // namespace bitsplit
