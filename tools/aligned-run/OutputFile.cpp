// See the header.
#include "OutputFile.h"

#include "Run.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/Signals.h"

using namespace aligned;
namespace fs = llvm::sys::fs;

std::optional<OutputFile> OutputFile::create(const std::string &path, const std::string &option) {
  if (path.empty() || (fs::exists(path) && !fs::is_regular_file(path))) // a folder or device would be lost to the file
    return refuse("expected " + option + " to name a file, got '" + path + "'");
  // Not a file of LLVM's own making, whose names are templates that a % in a folder's name would spoil.
  std::string temporary = path + "-" + std::to_string(llvm::sys::Process::getProcessId());
  int file;
  if (std::error_code error = fs::openFileForWrite(temporary, file, fs::CD_CreateNew))
    return refuse(path + ": expected a place to write to, got: " + error.message());
  llvm::sys::RemoveFileOnSignal(temporary);
  return OutputFile(path, temporary, file);
}

OutputFile::OutputFile(std::string path, std::string temporary, int file)
    : path(std::move(path)), temporary(std::move(temporary)), os(std::make_unique<llvm::raw_fd_ostream>(file, /*shouldClose=*/true)) {}

OutputFile::~OutputFile() {
  if (os)
    discard();
}

void OutputFile::discard() {
  os->clear_error();
  os.reset();
  fs::remove(temporary);
  llvm::sys::DontRemoveFileOnSignal(temporary);
}

bool OutputFile::write(llvm::function_ref<void(llvm::raw_ostream &)> print) {
  print(*os);
  os->flush();
  std::error_code error = os->error();
  if (!error)
    error = fs::rename(temporary, path);
  if (error) {
    refuse(path + ": expected to be written, got: " + error.message());
    discard();
    return false;
  }
  os.reset();
  llvm::sys::DontRemoveFileOnSignal(temporary);
  return true;
}
