#include "tiles.h"

namespace jetkern::JETKERN_ISA {

// All registers of 16 rows of 64 bytes.
void open_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  if constexpr (TILES) asm volatile("ldtilecfg %0" : : "m"(shape));
}

void close_tiles() {
  if constexpr (TILES) asm volatile("tilerelease");
}

}  // namespace jetkern::JETKERN_ISA
