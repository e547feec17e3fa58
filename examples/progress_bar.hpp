// A progress bar on a terminal, plain lines now and then elsewhere.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

class ProgressBar {
 public:
  /// Without a terminal, lines at least so many seconds apart.
  explicit ProgressBar(double seconds_between_lines)
      : shown_(is_terminal(stdout) && is_terminal(stderr)), between_(seconds_between_lines) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() { clear(); }

  /// `done`: 0 ... 1
  void show(double done, const std::string& what) {
    const Clock::time_point now = Clock::now();
    if (shown_) {
      constexpr std::size_t width = 30;
      const auto filled = static_cast<std::size_t>(std::clamp(done, 0.0, 1.0) * width);
      std::fprintf(stderr, "\r\033[K[%s%s] %s", std::string(filled, '#').c_str(),
                   std::string(width - filled, '.').c_str(), what.c_str());
      std::fflush(stderr);
    } else if (now - last_line_ >= between_) {
      std::printf("%s\n", what.c_str());
      std::fflush(stdout);
      last_line_ = now;
    }
  }
  /// Makes room for a line of output.
  void clear() const {
    if (!shown_) return;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;

  static bool is_terminal(std::FILE* file) {
#if defined(_WIN32)
    return _isatty(_fileno(file)) != 0;
#else
    return isatty(fileno(file)) != 0;
#endif
  }

  bool shown_;
  std::chrono::duration<double> between_;
  Clock::time_point last_line_ = Clock::now();
};
