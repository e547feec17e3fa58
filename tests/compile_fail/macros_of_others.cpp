// compiles
// flags: -DNDEBUG -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
// B06: as after <windows.h> and <complex.h>, which leave these macros behind.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <Eigen/Core>

using namespace std;
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define I _Complex_I
#define B0 0000000
#define small char
#define near
#define far
#include <longview/eigen.hpp>
#include <longview/longview.hpp>
