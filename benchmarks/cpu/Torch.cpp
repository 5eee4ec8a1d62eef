// See the header.
#include "Torch.h"

#include "Run.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <sched.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace aligned;

namespace aligned { // where LLVM looks for it
static bool fromJSON(const llvm::json::Value &value, Torch::Contestant &contestant, llvm::json::Path path) {
  llvm::json::ObjectMapper map(value, path);
  return map && map.map("name", contestant.name) && map.map("bytes", contestant.bytes) && map.map("note", contestant.note);
}
} // namespace aligned

std::shared_ptr<Torch> Torch::start(const std::string &python, const std::string &folder, int copies, int threads, int seconds) {
  int ends[2], process;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
    return refuse(std::string("--torch: expected a socket, got: ") + strerror(errno)), nullptr;
  const timeval limit = {seconds, 0};
  setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  std::string arguments[] = {python, ALIGNED_TORCH_WORKER, folder, std::to_string(copies), std::to_string(threads)};
  std::vector<char *> pointers;
  for (std::string &argument : arguments)
    pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (int standard : {STDIN_FILENO, STDOUT_FILENO})
    posix_spawn_file_actions_adddup2(&actions, ends[1], standard);
  const int failed = posix_spawnp(&process, python.c_str(), &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (failed) {
    close(ends[0]);
    return refuse("--torch: expected a Python that starts, got " + python + ": " + strerror(failed)), nullptr;
  }
  return std::make_shared<Torch>(process, ends[0], threads, seconds);
}

/// Ends the worker, if it is still there, and returns its status.
int Torch::end() {
  int status = 0;
  if (socket >= 0) {
    close(socket);
    socket = -1;
    kill(process, SIGKILL);
    waitpid(process, &status, 0);
  }
  return status;
}

std::nullopt_t Torch::lose(const std::string &request, const std::string &got) {
  llvm::errs() << "aligned-bench: warning: torch: expected an answer to '" << request << "', got " << got << "; its contestants are left out\n";
  end();
  return std::nullopt;
}

template <typename T> std::optional<T> Torch::ask(const std::string &request) {
  if (socket < 0)
    return std::nullopt;
  if (threads == 1) {
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    sched_setaffinity(process, sizeof(here), &here);
  }
  send(socket, (request + "\n").data(), request.size() + 1, MSG_NOSIGNAL); // whether it came is seen by the answer
  std::string line;
  while (line.empty() || line.back() != '\n') {
    char some[4096];
    const ssize_t count = recv(socket, some, sizeof(some), 0);
    if (count < 0 && errno == EAGAIN)
      return lose(request, "none in " + std::to_string(seconds) + " s");
    if (count <= 0) {
      const int status = end();
      return lose(request, WIFEXITED(status) ? "exit status " + std::to_string(WEXITSTATUS(status)) : "signal " + std::to_string(WTERMSIG(status)));
    }
    line.append(some, count);
  }
  llvm::Expected<T> answer = llvm::json::parse<T>(line);
  if (!answer)
    return lose(request, llvm::toString(answer.takeError()) + ": " + line.substr(0, 80));
  return *answer;
}

std::vector<Torch::Contestant> Torch::contestants() { return ask<std::vector<Contestant>>("list").value_or(std::vector<Contestant>()); }

double Torch::time(size_t contestant) { return ask<double>("time " + std::to_string(contestant)).value_or(NAN) * 1e-9; }

std::vector<double> Torch::output(size_t contestant, int64_t layer) {
  return ask<std::vector<double>>("output " + std::to_string(contestant) + " " + std::to_string(layer)).value_or(std::vector<double>());
}
