// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a call of Linformer to projections and to attention over their slots.
#pragma once

#include "longview/detail/backward_check.hpp"
#include "longview/detail/works.hpp"
#include "longview/projection.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// What both passes have in common: projections of keys and values, and attention over the slots that they yield.
template <typename T>
struct LinformerCall {
  ProjectionCall<T> keys, values;
  Scores<T> scores;
  BandCall<T> over_slots;

  /// Slots have no memory yet, unless options say where they are.
  template <typename Options>
  LinformerCall(const BandCall<T>& call, const Options& options, const Projection<T>& value_projection,
                const Shape<4>& key_slots, const Shape<4>& value_slots)
      : keys(projection_of(call.keys[0].key, key_slots, options.projected_key, options.key_projection, options)),
        values(projection_of(call.keys[0].value, value_slots, options.projected_value, value_projection, options)),
        over_slots(call),
        placed_(static_cast<bool>(options.projected_key)) {
    scores.scale = options.scores.scale, scores.softcap = options.scores.softcap;
    scores.sinks = options.scores.sinks, scores.dropout = options.scores.dropout;
    over_slots.scores = &scores, over_slots.positions = key_slots[2];
    over_slots.keys = {keys.out, values.out};
  }
  LinformerCall(const LinformerCall&) = delete;
  LinformerCall& operator=(const LinformerCall&) = delete;

  void add_slots(ByteCount& bytes) const {
    if (!placed_) bytes.add(elements(keys), sizeof(T)).add(elements(values), sizeof(T));
  }
  void place(Carver& carver) {
    if (placed_) return;
    keys.out = take_slots(carver, keys), values.out = take_slots(carver, values);
    over_slots.keys = {keys.out, values.out};
  }

  // Works point at memory: where there is none yet, they have but a size.
  WorkSize project_size(Index workers) const {
    return WorkSize::of(ProjectionWork<T>(keys, workers)).beside(WorkSize::of(ProjectionWork<T>(values, workers)));
  }
  void project(const Run& run, const Scratch& scratch) const {
    run_works(run, scratch, ProjectionWork<T>(keys, run.concurrency()), ProjectionWork<T>(values, run.concurrency()));
  }

  /// Asks for the gradients of slots, which have no memory yet.
  void want_gradients(bool of_keys, bool of_values) {
    over_slots.d_keys = {{of_keys ? keys.out : TensorView<T, 4>(), of_values ? values.out : TensorView<T, 4>()}};
  }
  void add_gradients(ByteCount& bytes) const {
    if (over_slots.d_keys[0].key) bytes.add(elements(keys), sizeof(T));
    if (over_slots.d_keys[0].value) bytes.add(elements(values), sizeof(T));
  }
  void place_gradients(Carver& carver) {
    KeyValueGradient<T> slots = over_slots.d_keys[0];
    if (slots.key) slots.key = take_slots(carver, keys);
    if (slots.value) slots.value = take_slots(carver, values);
    over_slots.d_keys = {slots};
  }

 private:
  static TensorView<T, 4> take_slots(Carver& carver, const ProjectionCall<T>& of) {
    return {carver.template take<T>(elements(of)), of.out.shape()};
  }
  template <typename Options>
  static ProjectionCall<T> projection_of(const TensorView<const T, 4>& input, const Shape<4>& slots,
                                         const TensorView<T, 4>& projected, const Projection<T>& projection,
                                         const Options& options) {
    auto call = projection_call(input, projected ? projected : TensorView<T, 4>(nullptr, slots), projection);
    call.keep = options.keep_keys, call.lengths = options.scores.key_lengths;
    return call;
  }
  static Index elements(const ProjectionCall<T>& of) {
    const Shape<4>& shape = of.out.shape();
    return shape[0] * shape[1] * shape[2] * shape[3];
  }

  const bool placed_;
};

template <typename T>
WorkSize gradient_size(const ProjectionGradientCall<T>& keys, const ProjectionGradientCall<T>& values, Index workers) {
  return WorkSize::of(ProjectionGradientWork<T>(keys, workers))
      .beside(WorkSize::of(ProjectionGradientWork<T>(values, workers)));
}
/// Runs the gradients of both projections, one after the other where the second adds to what the first has written.
template <typename T>
void run_gradients(const Run& run, const Scratch& scratch, const ProjectionGradientCall<T>& keys,
                   const ProjectionGradientCall<T>& values) {
  const ProjectionGradientWork<T> first(keys, run.concurrency()), second(values, run.concurrency());
  if (!values.adds) return run_works(run, scratch, first, second);
  run_work(run, scratch, first);
  run_work(run, scratch, second);
}

}  // namespace longview
