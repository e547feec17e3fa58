# Sourced by tests/run, examples/run and bench/run: finds what they need, and installs it where that is allowed.
# Needs nothing but bash and coreutils before install_missing has run.

export DEBIAN_FRONTEND=noninteractive
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
compiler=${CXX:-g++}
apt_updated=false

# need                apt                      dnf                      brew
packages="
compiler              g++                      gcc-c++                  gcc
cmake                 cmake                    cmake                    cmake
make                  make                     make                     make
pkg-config            pkg-config               pkgconf-pkg-config       pkgconf
Eigen3                libeigen3-dev            eigen3-devel             eigen
GTest                 libgtest-dev             gtest-devel              googletest
benchmark             libbenchmark-dev         google-benchmark-devel   google-benchmark
nlohmann_json         nlohmann-json3-dev       json-devel               nlohmann-json
CLI11                 libcli11-dev             cli11-devel              cli11
python3               python3                  python3                  python
venv                  python3-venv             -                        -
python-headers        python3-dev              python3-devel            -
matplotlib            python3-matplotlib       python3-matplotlib       python-matplotlib
valgrind              valgrind                 valgrind                 -
clang++               clang                    clang                    llvm
qemu                  qemu-user                qemu-user                qemu
x86_64-linux-gnu-g++  g++-x86-64-linux-gnu     -                        -
i686-linux-gnu-g++    g++-i686-linux-gnu       -                        -
aarch64-linux-gnu-g++ g++-aarch64-linux-gnu    -                        -
"

# package MANAGER NEED...: one line of the names that a package manager has for needs.
package() {
  local manager=$1 names=() need apt dnf brew
  shift
  while read -r need apt dnf brew; do
    if [[ -n $need && " $* " == *" $need "* && ${!manager} != - ]]; then names+=("${!manager}"); fi
  done <<<"$packages"
  echo "${names[*]}"
}

have() { command -v "$1" >/dev/null 2>&1; }

# The first Python that has a module: the system's packages are for its own.
python_with() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -c "import $1" >/dev/null 2>&1; then echo "$python" && return; fi
  done
  return 1
}
have_python_headers() {
  python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' >/dev/null 2>&1
}
have_qemu() { have "qemu-$1" || have "qemu-$1-static"; }

cmake_is_new_enough() {
  local version
  have cmake && version=$(cmake --version | sed -n 's/^cmake version //p') &&
    [[ $(printf '%s\n' 3.22 "$version" | sort -V | head -n 1) == 3.22 ]]
}

# missing_libraries NAME...: those of the CMake packages that CMake does not find.
missing_libraries() {
  local probe=$root/build/setup
  mkdir -p "$probe"
  cat >"$probe/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.22)
project(setup LANGUAGES CXX)
foreach(name IN LISTS NAMES)
  find_package(${name} QUIET)
  if(NOT ${name}_FOUND)
    message(NOTICE "missing ${name}")
  endif()
endforeach()
CMAKE
  CXX=$compiler cmake -S "$probe" -B "$probe/build" "-DNAMES=$(IFS=';' && echo "$*")" 2>&1 | sed -n 's/^missing //p'
}

# missing NEED...: those that are not there.
missing() {
  local need tools=true libraries=() found
  for need in "$@"; do
    found=true
    case $need in
      compiler) have "$compiler" || { tools=false found=false; } ;;
      cmake) cmake_is_new_enough || { tools=false found=false; } ;;
      make) have make || { tools=false found=false; } ;;
      qemu) have_qemu x86_64 && have_qemu aarch64 || found=false ;;
      venv) python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || found=false ;;
      python-headers) have_python_headers || found=false ;;
      matplotlib) python_with matplotlib >/dev/null || found=false ;;
      pkg-config | python3 | valgrind | *++) have "$need" || found=false ;;
      *) libraries+=("$need") ;;
    esac
    $found || echo "$need"
  done
  # Without these tools CMake cannot be asked; naming a library that is there already does no harm.
  if ! $tools; then
    printf '%s\n' "${libraries[@]}"
  elif ((${#libraries[@]})); then
    missing_libraries "${libraries[@]}"
  fi
}

may_install() { have apt-get && { [[ $(id -u) == 0 ]] || sudo -n true </dev/null 2>/dev/null; }; }

# The lines to type, for the package manager that is here, or for all.
print_install_lines() {
  local any=false
  if have apt-get; then any=true && echo "  sudo apt-get install -y $(package apt "$@")"; fi
  if have dnf; then any=true && echo "  sudo dnf install -y $(package dnf "$@")"; fi
  if have brew; then any=true && echo "  brew install $(package brew "$@")"; fi
  if ! $any; then
    echo "  apt:  sudo apt-get install -y $(package apt "$@")"
    echo "  dnf:  sudo dnf install -y $(package dnf "$@")"
    echo "  brew: brew install $(package brew "$@")"
  fi
}

# install_missing NEED...: returns 1, having said what to type, if something is still missing at the end.
install_missing() {
  local needs
  read -r -d '' -a needs < <(missing "$@" && printf '\0') || true
  ((${#needs[@]})) || return 0
  if may_install; then
    local sudo=() apt
    [[ $(id -u) == 0 ]] || sudo=(sudo -n)
    apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600)
    echo "installing: $(package apt "${needs[@]}")"
    if ! $apt_updated; then
      "${apt[@]}" update </dev/null || true
      apt_updated=true
    fi
    # shellcheck disable=SC2046
    "${apt[@]}" install -y --no-install-recommends $(package apt "${needs[@]}") \
      </dev/null >"$root/build/apt.log" 2>&1 || tail -n 20 "$root/build/apt.log"
    read -r -d '' -a needs < <(missing "$@" && printf '\0') || true
    ((${#needs[@]})) || return 0
  fi
  if [[ " ${needs[*]} " == *" cmake "* ]] && have cmake; then
    echo "CMake 3.22 or newer is needed, here is $(cmake --version | head -n 1)"
  fi
  echo "missing: ${needs[*]}. To install:"
  print_install_lines "${needs[@]}"
  return 1
} >&2

mkdir -p "$root/build"

# configure TREE OPTION...: quiet unless it fails.
configure() {
  local tree=$1 log=$1/configure.log
  shift
  mkdir -p "$tree"
  cmake -S "$root" -B "$tree" "$@" >"$log" 2>&1 || { cat "$log" && return 1; }
}

# build TREE TARGET...
build() {
  local tree=$1
  shift
  cmake --build "$tree" --parallel "$jobs" --target "$@"
}
