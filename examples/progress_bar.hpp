// A progress bar on a terminal, nothing elsewhere.
#pragma once

#include <cstdio>
#include <string>

#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

class ProgressBar {
 public:
  explicit ProgressBar(int steps) : steps_(steps), shown_(is_terminal(stdout) && is_terminal(stderr)) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() { clear(); }

  /// Before each step.
  void step(const std::string& what) {
    ++step_;
    if (!shown_) return;
    const int width = 30, filled = width * (step_ - 1) / steps_;
    std::fprintf(stderr, "\r\033[K[%s%s] %d/%d %s", std::string(static_cast<std::size_t>(filled), '#').c_str(),
                 std::string(static_cast<std::size_t>(width - filled), '.').c_str(), step_, steps_, what.c_str());
    std::fflush(stderr);
  }
  /// Makes room for a line of output.
  void clear() const {
    if (!shown_) return;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }

 private:
  static bool is_terminal(std::FILE* file) {
#if defined(_WIN32)
    return _isatty(_fileno(file)) != 0;
#else
    return isatty(fileno(file)) != 0;
#endif
  }

  int steps_, step_ = 0;
  bool shown_;
};
