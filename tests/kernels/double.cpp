// SPDX-License-Identifier: Apache-2.0
#include "kernels.hpp"

LONGVIEW_KERNELS(, double)
