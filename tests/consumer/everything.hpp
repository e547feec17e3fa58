// All public headers, with Eigen's where the target in use brings Eigen.
#pragma once
#include <longview/longview.hpp>
#ifdef CONSUMER_HAS_EIGEN
#include <longview/eigen.hpp>
#endif

// One query and one key: the output is the value.
template <typename T>
T attended() {
  T query[2] = {1, 2}, key[2] = {3, 4}, value[1] = {5}, out[1] = {};
  longview::full_attention(longview::TensorView(query, {1, 1, 1, 2}), {key, {1, 1, 1, 2}}, {value, {1, 1, 1, 1}},
                           longview::TensorView(out, {1, 1, 1, 1}));
  return out[0];
}
