// The Python module bitsplit._C: how it was built. The operators register themselves with torch.library when
// the module is loaded, each in its own file under ops/.

#include <ATen/Version.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <string>

#include "bitsplit_build_info.h"  // written by setup.py: kDecisions

namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info(kDecisions.begin(), kDecisions.end());
  info["compiler"] = __VERSION__;
  info["cpu_capability"] = at::get_cpu_capability();
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "Compiled part of bitsplit; its operators are torch.ops.bitsplit.*";
  module.def("build_info", &build_info,
             "How this module was built: torch, cuda and the reason, arch_list, flags, compiler, sources.");
}
