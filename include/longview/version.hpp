// SPDX-License-Identifier: Apache-2.0
/// \file
/// The version of these headers. `v0` in the namespaces is the major version.
#pragma once

#define LONGVIEW_VERSION_MAJOR 0
#define LONGVIEW_VERSION_MINOR 1
#define LONGVIEW_VERSION_PATCH 0
