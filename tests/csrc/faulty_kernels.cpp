// Runs a kernel with a planted fault. CTest expects the sanitizer of the build to report it: this shows that
// a fault in a real kernel would not go unseen.
#include <string>

#include "cuda_on_cpu.h"
#include "example_kernels.cuh"

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "";
  std::vector<float> values(256, 1.0f);
  float total = 0;
  if (fault == "race") cuda_on_cpu::launch(2, 128, 0, sum_kernel<float, false>, values.data(), 256, &total);
  if (fault == "overrun")
    cuda_on_cpu::launch(2, 128, 128 * sizeof(float), reverse_kernel, values.data(), true);
  return 0;
}
