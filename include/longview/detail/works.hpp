// SPDX-License-Identifier: Apache-2.0
/// \file
/// Works of one call, one after the other or beside each other, in the same scratch. A work has a number of tasks, says
/// what scratch a worker needs for any of them, and runs one.
#pragma once

#include <initializer_list>

#include "longview/detail/scratch.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

struct WorkSize {
  Index tasks;
  ByteCount scratch;  // for each worker

  template <typename Work>
  explicit WorkSize(const Work& work) : tasks(work.tasks()), scratch(work.scratch()) {}
};

/// Bytes for a worker that does all of these in turn.
inline ByteCount largest(std::initializer_list<ByteCount> all) {
  ByteCount most;
  for (const ByteCount& one : all)
    if (most.bytes() < one.bytes() || !one.fits()) most = one;
  return most;
}

template <typename Work>
void run_work(const Run& run, const Scratch& scratch, const Work& work) {
  const Index tasks = work.tasks();
  run_tasks(run, run.concurrency() < tasks ? run.concurrency() : tasks, tasks,
            [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
}

/// Runs the tasks of two works beside each other.
template <typename First, typename Second>
void run_works(const Run& run, const Scratch& scratch, const First& first, const Second& second) {
  const Index firsts = first.tasks(), tasks = firsts + second.tasks();
  run_tasks(run, run.concurrency() < tasks ? run.concurrency() : tasks, tasks, [&](Index task, Index worker) {
    if (task < firsts)
      first.run(task, scratch.of(worker));
    else
      second.run(task - firsts, scratch.of(worker));
  });
}

}  // namespace longview
