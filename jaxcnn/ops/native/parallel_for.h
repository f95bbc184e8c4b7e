// Loops that run on XLA's thread pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

// Calls work(0) to work(count - 1) in any order. The calling thread starts at once; free threads of the pool join in.
template <typename Work>
void ParallelFor(xla::ffi::ThreadPool pool, int64_t count, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  // The state is shared because a thread that joins too late finds it after this function has returned. That thread takes no
  // item, so it does not touch `work`, which no longer exists.
  auto state = std::make_shared<State>();
  auto run = [state, count, &work] {
    for (int64_t i; (i = state->next++) < count;) {
      work(i);
      if (++state->done == count) {
        const std::lock_guard<std::mutex> lock(state->mutex);
        state->all_done.notify_one();
      }
    }
  };
  for (int64_t i = 1; i < std::min(pool.num_threads(), count); ++i) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
}

// Index of the first of `size` items that belongs to slice i, when they are divided evenly into `slices`.
inline int64_t SliceBegin(int64_t size, int64_t slices, int64_t i) { return size * i / slices; }
