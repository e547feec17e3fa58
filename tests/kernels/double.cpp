// SPDX-License-Identifier: Apache-2.0
// Compiled once for all tests that include test_support.hpp.
#include <longview/kernel/targets.hpp>

template longview::kernel::Kernels<double> longview::kernel::kernels<double>();
