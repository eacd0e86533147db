// What ExecuTorch prints while a method runs, kept by the thread that runs it.
//
// The Python binding of ExecuTorch prints by way of Python's sys.stderr, for which a thread needs
// the GIL. So the engine's threads keep what they are told, and the others go on as before.
#pragma once

#include <string>

namespace mmpack {

/// Has the process's messages pass by here first. Once; ExecuTorch makes a remark on it.
void listen();

/// While it lives, what ExecuTorch prints in this thread goes into `text`, line by line.
class Listening {
 public:
  explicit Listening(std::string& text);
  ~Listening();
  Listening(const Listening&) = delete;
  Listening& operator=(const Listening&) = delete;

 private:
  std::string* before_;
};

}  // namespace mmpack
