// How the compiler is called: on a thread of its own, so that Ctrl-C is answered while it computes; what it says comes back as Python's objects.
//
// An interrupted compilation ends by itself, and what it gives is dropped. The process waits for it at its end, where a thread that still runs would be pulled from under.
#ifndef ALIGNED_PYTHON_COMPILING_H
#define ALIGNED_PYTHON_COMPILING_H

#include "Arrays.h"

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// A module's text, and how it is read. Without a file's name nothing that is said points into it: it is one that users never saw.
struct Source {
  std::string text;
  std::optional<std::string> filename;
  bool allowUnregistered;
};
using SharedSource = std::shared_ptr<const Source>;

struct Diagnostic {
  aligned_severity severity;
  std::string message;
  std::optional<std::string> filename;
  int32_t line, column;
};
using Diagnostics = std::vector<Diagnostic>; // a note is of the nearest one ahead of it that is none

/// alignedkv.CompileError
struct Refused : std::exception {
  explicit Refused(Diagnostics said) : said(std::move(said)) {}
  Diagnostics said;
};

/// A list of alignedkv.Diagnostic.
nb::list listOf(const Diagnostics &diagnostics);

namespace detail {

/// While it lives, the process waits at its end.
struct Running {
  Running();
  Running(const Running &) = delete;
  ~Running();
};

constexpr auto kPatience = std::chrono::milliseconds(50); // of somebody who presses Ctrl-C

/// What was said on this thread.
Diagnostics lastDiagnostics();
void read(const Source &source);

} // namespace detail

/// What `compile` makes of the text, and what was said of it. Refused where that is null. `compile` owns what it uses: who called it may be gone.
template <typename F> auto compiled(SharedSource source, F compile) {
  using Value = std::invoke_result_t<F, const char *>;
  using Outcome = std::pair<Value, Diagnostics>;
  auto running = std::make_unique<detail::Running>();
  std::packaged_task<Outcome()> task([source = std::move(source), compile = std::move(compile)] {
    detail::read(*source);
    Value value = compile(source->text.c_str());
    return Outcome(std::move(value), detail::lastDiagnostics());
  });
  std::future<Outcome> outcome = task.get_future();
  std::thread thread([task = std::move(task), running = std::move(running)]() mutable {
    task();
    task = {}; // with what nobody waits for
  });
  for (bool ready = false; !ready;) {
    {
      nb::gil_scoped_release release;
      ready = outcome.wait_for(detail::kPatience) == std::future_status::ready;
      if (ready)
        thread.join();
    }
    if (!ready && PyErr_CheckSignals()) {
      thread.detach();
      throw nb::python_error();
    }
  }
  Outcome result = outcome.get();
  if (!result.first)
    throw Refused(std::move(result.second));
  return result;
}

/// Adds what the above needs to the module.
void bindCompiling(nb::module_ &m);

#endif
