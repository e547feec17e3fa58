// SPDX-License-Identifier: Apache-2.0
/// \file
/// Every operator. The adapters (eigen.hpp, openmp.hpp) are included apart.
#pragma once

#include "longview/compressive_memory.hpp"
#include "longview/full_attention.hpp"
#include "longview/linformer_attention.hpp"
#include "longview/longformer_attention.hpp"
#include "longview/partial.hpp"
#include "longview/performer_attention.hpp"
#include "longview/projection.hpp"
#include "longview/random_features.hpp"
#include "longview/relative_attention.hpp"
#include "longview/sliding_window_attention.hpp"
#include "longview/version.hpp"
