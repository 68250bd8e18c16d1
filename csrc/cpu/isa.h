// Which instruction set the CPU kernels run with. The best this machine has, unless set_isa
// says otherwise (kdkernels/_loader.py calls it for KDKERNELS_ISA).
#pragma once
#include <string>
#include <vector>

namespace kd {

enum class Isa { base, avx2, avx512 };

const char* isa_name(Isa isa);
std::vector<Isa> available_isas();
Isa isa_in_use();
void set_isa(const std::string& name);  // std::invalid_argument names what is accepted

}  // namespace kd
