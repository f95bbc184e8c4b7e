// A parallel loop on XLA's thread pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

// Calls work(0) to work(count - 1) in any order. The calling thread starts at once, and idle threads of the pool join it. If
// calls throw exceptions, the others are still made, and one of the exceptions is rethrown after them.
template <typename Work>
void ParallelFor(xla::ffi::ThreadPool pool, int64_t count, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
    std::exception_ptr error;
  };
  // The threads share ownership of the state, because a scheduled task may start after this function has returned. Such a
  // task gets no item, so it does not access `work`, which no longer exists.
  auto state = std::make_shared<State>();
  auto run = [state, count, &work] {
    for (int64_t i; (i = state->next++) < count;) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(state->mutex);
        state->error = std::current_exception();
      }
      if (++state->done == count) {
        const std::lock_guard<std::mutex> lock(state->mutex);
        state->all_done.notify_one();
      }
    }
  };
  try {
    for (int64_t i = 1; i < std::min(pool.num_threads(), count); ++i) pool.Schedule(decltype(run)(run));
  } catch (const std::bad_alloc&) {  // the threads that were scheduled so far, and this one, do all the work
  }
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
  if (state->error) std::rethrow_exception(state->error);
}

// Returns the index of the first item of slice i if `size` items are divided evenly into `slices` slices.
inline int64_t SliceBegin(int64_t size, int64_t slices, int64_t i) { return size * i / slices; }
