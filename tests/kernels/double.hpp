// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels.hpp"

LONGVIEW_KERNELS(extern, double)
