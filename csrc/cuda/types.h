#pragma once

#include <cstdint>

namespace jetkern {

struct bf16 {
  uint16_t bits;
};

enum class Precision { ieee, tf32, bf16 };  // in the order of PRECISIONS in jetkern/ops/dispatch.py

}  // namespace jetkern
