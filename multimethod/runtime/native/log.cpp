#include "log.h"

#include <executorch/runtime/platform/platform.h>

namespace mmpack {
namespace {

namespace runtime = executorch::runtime;

thread_local std::string* heard = nullptr;
pal_emit_log_message_method others = nullptr;

void emit(
    et_timestamp_t timestamp,
    et_pal_log_level_t level,
    const char* filename,
    const char* function,
    size_t line,
    const char* message,
    size_t length) {
  if (heard == nullptr) {
    others(timestamp, level, filename, function, line, message, length);
    return;
  }
  // As ExecuTorch's Python binding writes it.
  heard->append("[").append(filename).append(":").append(std::to_string(line)).append("] ");
  heard->append(message).append("\n");
}

}  // namespace

void listen() {
  others = runtime::get_pal_impl()->emit_log_message;
  runtime::register_pal(runtime::PalImpl::create(emit, __FILE__));
}

Listening::Listening(std::string& text) : before_(heard) {
  heard = &text;
}

Listening::~Listening() {
  heard = before_;
}

}  // namespace mmpack
