// Work that XLA's threads share.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

// Does work(0) to work(count - 1). This thread begins at once, and those of XLA's that are free join in.
template <typename Work>
void Share(xla::ffi::ThreadPool pool, int64_t count, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all;
  };
  auto shared = std::make_shared<Shared>();  // one that joins too late finds nothing left, and `work` gone
  auto run = [shared, count, &work] {
    for (int64_t i; (i = shared->next++) < count;) {
      work(i);
      if (++shared->done == count) {
        const std::lock_guard<std::mutex> lock(shared->mutex);
        shared->all.notify_one();
      }
    }
  };
  for (int64_t i = 1; i < std::min(pool.num_threads(), count); ++i) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done == count; });
}
