// A model as files, for machines and programs without a compiler: kernels for GPUs, or an object with its header.
#include "Layers.h"
#include "OutputFile.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

using namespace aligned;

static std::optional<std::string> sourceOf(const std::string &modelPath, const std::string &captureFolder) {
  if (!modelPath.empty())
    return readText(modelPath);
  std::optional<Capture> capture = readCapture(captureFolder);
  return capture ? std::optional(moduleText(*capture)) : std::nullopt;
}

static std::optional<OutputFile> createIn(const std::string &folder, const std::string &name) {
  llvm::sys::fs::create_directories(folder); // where that fails, files can't be created either
  llvm::SmallString<128> path(folder);
  llvm::sys::path::append(path, name);
  return OutputFile::create(path.str().str(), "-o");
}

bool aligned::emitObject(const std::string &modelPath, const RunOptions &options, const ObjectOptions &wanted, const std::string &folder) {
  std::optional<std::string> source = readText(modelPath);
  if (!source)
    return false;
  const aligned_machine machine{wanted.triple.c_str(), wanted.cpu.c_str(), wanted.features.c_str()};
  aligned_object object = {};
  if (aligned_compile_ahead(source->c_str(), options.pipeline().c_str(), nullptr, wanted.name.empty() ? nullptr : wanted.name.c_str(), &machine, &object))
    return refuse(aligned_last_error()), false;
  const std::string name = object.name;
  std::optional<OutputFile> header = createIn(folder, name + ".h"), code = header ? createIn(folder, name + (wanted.llvmIR ? ".ll" : ".o")) : std::nullopt;
  const llvm::StringRef text = wanted.llvmIR ? llvm::StringRef(object.llvm_ir) : llvm::StringRef(object.object, object.bytes);
  const bool written = code && code->write([&](llvm::raw_ostream &os) { os << text; }) && header->write([&](llvm::raw_ostream &os) { os << object.header; });
  aligned_object_free(&object);
  return written;
}

bool aligned::emitKernels(const std::string &modelPath, const std::string &captureFolder, const RunOptions &options, const std::string &folder) {
  std::optional<std::string> source = sourceOf(modelPath, captureFolder);
  if (!source)
    return false;
  std::optional<OutputFile> ptxFile = createIn(folder, "kernels.ptx"), sidecarFile = ptxFile ? createIn(folder, "kernels.json") : std::nullopt;
  if (!sidecarFile)
    return false;
  char *ptx = nullptr, *sidecar = nullptr;
  if (aligned_compile_kernels(source->c_str(), options.pipeline().c_str(), &ptx, &sidecar))
    return refuse(aligned_last_error()), false;
  bool written = ptxFile->write([&](llvm::raw_ostream &os) { os << ptx; }) && sidecarFile->write([&](llvm::raw_ostream &os) { os << sidecar; });
  aligned_text_free(ptx);
  aligned_text_free(sidecar);
  return written;
}
