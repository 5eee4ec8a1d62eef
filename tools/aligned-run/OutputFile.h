// A file that appears under its name when it is complete, or not at all.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_OUTPUTFILE_H
#define ALIGNED_TOOLS_ALIGNED_RUN_OUTPUTFILE_H

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/Support/raw_ostream.h"

#include <memory>
#include <optional>
#include <string>

namespace aligned {

class OutputFile {
public:
  /// Opens a file beside `path`, ahead of the work. Prints the error where nothing can be written there; `option` is what named it.
  static std::optional<OutputFile> create(const std::string &path, const std::string &option);
  OutputFile(OutputFile &&other) = default;
  ~OutputFile();

  /// Writes all of it and gives it its name, or prints the error.
  bool write(llvm::function_ref<void(llvm::raw_ostream &)> print);

private:
  OutputFile(std::string path, std::string temporary, int file);
  void discard();

  std::string path, temporary;
  std::unique_ptr<llvm::raw_fd_ostream> os; ///< none once the file has its name, or is gone
};

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_OUTPUTFILE_H
