#include "Compiling.h"

#include <nanobind/stl/string.h>

#include <atomic>

#include <pthread.h>

using namespace detail;

namespace {

std::atomic<int> running{0};

/// Messages quote what users wrote, which need not be UTF-8.
nb::object textOf(const std::string &text) { return nb::steal(PyUnicode_DecodeUTF8(text.data(), text.size(), "replace")); }

const char *nameOf(aligned_severity severity) {
  switch (severity) {
  case ALIGNED_SEVERITY_ERROR:
    return "error";
  case ALIGNED_SEVERITY_WARNING:
    return "warning";
  case ALIGNED_SEVERITY_REMARK:
    return "remark";
  case ALIGNED_SEVERITY_NOTE:
    return "note";
  }
  return "";
}

/// The classes are Python's own, which pickles, compares and prints them.
nb::object classOf(const char *name) { return nb::module_::import_("alignedkv.compiler").attr(name); }

void waitForAll() {
  while (running) {
    {
      nb::gil_scoped_release release;
      std::this_thread::sleep_for(kPatience);
    }
    if (PyErr_CheckSignals())
      throw nb::python_error();
  }
}

} // namespace

/// A child of fork has no thread that compiles.
const int noneInChildren = pthread_atfork(nullptr, nullptr, [] { running = 0; });

Running::Running() { ++running; }
Running::~Running() { --running; }

void detail::read(const Source &source) {
  aligned_allow_unregistered_dialects(source.allowUnregistered);
  aligned_name_source(source.filename ? source.filename->c_str() : nullptr);
}

Diagnostics detail::lastDiagnostics() {
  const aligned_diagnostic *views;
  Diagnostics diagnostics;
  for (int32_t left = aligned_last_diagnostics(&views); left > 0; --left, ++views)
    diagnostics.push_back({views->severity, views->message, views->filename ? std::optional<std::string>(views->filename) : std::nullopt, views->line, views->column});
  return diagnostics;
}

nb::list listOf(const Diagnostics &diagnostics) {
  nb::object type = classOf("Diagnostic");
  nb::list list;
  for (auto next = diagnostics.begin(); next != diagnostics.end();) {
    auto object = [&](const Diagnostic &said, nb::list notes) {
      const bool isPlaced = said.filename && said.line;
      return type(nameOf(said.severity), textOf(said.message), isPlaced ? textOf(*said.filename) : nb::none(), isPlaced ? nb::cast(said.line) : nb::none(),
                  isPlaced ? nb::cast(said.column) : nb::none(), nb::tuple(notes));
    };
    const Diagnostic &said = *next++;
    nb::list notes;
    for (; next != diagnostics.end() && next->severity == ALIGNED_SEVERITY_NOTE; ++next)
      notes.append(object(*next, nb::list()));
    list.append(object(said, notes));
  }
  return list;
}

void bindCompiling(nb::module_ &m) {
  nb::register_exception_translator([](const std::exception_ptr &thrown, void *) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Refused &refused) {
      nb::object type = classOf("CompileError");
      PyErr_SetObject(type.ptr(), type(listOf(refused.said)).ptr());
    }
  });
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&waitForAll));
}
