// A loop over blocks of channels that are processed together in registers.

#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

// Calls visit(c, std::integral_constant<int, vectors>) for blocks of the channels c to c + vectors * kLanes. The blocks have
// kMaxVectors vectors as long as they fit, because long contiguous reads are fastest, and then 4 vectors or 1. The caller
// must process the remaining channels, which do not fill a vector.
template <int kMaxVectors = 4, typename Visit>
void ForEachChannelBlock(int64_t channels, const Visit& visit) {
  int64_t c = 0;
  for (; c + kMaxVectors * kLanes <= channels; c += kMaxVectors * kLanes)
    visit(c, std::integral_constant<int, kMaxVectors>());
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) visit(c, std::integral_constant<int, 4>());
  for (; c + kLanes <= channels; c += kLanes) visit(c, std::integral_constant<int, 1>());
}
