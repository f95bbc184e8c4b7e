// Loops over blocks of channels that are processed together in registers.

#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

// Calls visit(c, std::integral_constant<int, vectors>) for blocks of channels c to c + vectors * kLanes. Channels that do
// not fill a vector are left to the caller. Blocks of kMaxVectors come first, because long runs of memory are read fastest.
template <int kMaxVectors = 4, typename Visit>
void ForEachChannelBlock(int64_t channels, const Visit& visit) {
  int64_t c = 0;
  for (; c + kMaxVectors * kLanes <= channels; c += kMaxVectors * kLanes)
    visit(c, std::integral_constant<int, kMaxVectors>());
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) visit(c, std::integral_constant<int, 4>());
  for (; c + kLanes <= channels; c += kLanes) visit(c, std::integral_constant<int, 1>());
}
