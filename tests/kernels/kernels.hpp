// SPDX-License-Identifier: Apache-2.0
/// \file
/// The kernels of an element type are compiled once, in float.cpp and double.cpp, for all programs here.
#pragma once

#include <longview/kernel/targets.hpp>

#define LONGVIEW_KERNELS(prefix, T)                                                                      \
  prefix template longview::kernel::AttentionKernel<T> longview::kernel::attention_kernel<T>();          \
  prefix template longview::kernel::BackwardKernel<T> longview::kernel::backward_kernel<T>();            \
  prefix template longview::kernel::ProjectionKernel<T> longview::kernel::projection_kernel<T>();        \
  prefix template longview::kernel::FavorKernel<T> longview::kernel::favor_kernel<T>();                  \
  prefix template longview::kernel::FavorBackwardKernel<T> longview::kernel::favor_backward_kernel<T>(); \
  prefix template longview::kernel::ReceivedKernel<T> longview::kernel::received_kernel<T>();            \
  prefix template longview::kernel::MergeKernel<T> longview::kernel::merge_kernel<T>();                  \
  prefix template longview::kernel::MergeGradientKernel<T> longview::kernel::merge_gradient_kernel<T>();
