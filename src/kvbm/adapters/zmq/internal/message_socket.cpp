// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/zmq/internal/message_socket.hpp"

#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <zmq.hpp>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "kvbm/base/text.hpp"

namespace kvbm::internal {
namespace {

constexpr int kLingerMs = 500;
/// From one attempt to connect to the next.
constexpr int kReconnectMs = 20;

/// What the sender of a message did happens before what its receiver does. The thread sanitizer
/// does not see that by itself.
#if defined(__SANITIZE_THREAD__)
char message_order;
void note_sending() { __tsan_release(&message_order); }
void note_receipt() { __tsan_acquire(&message_order); }
#else
void note_sending() {}
void note_receipt() {}
#endif

tl::unexpected<Error> zmq_failure(std::string_view what, const std::string& endpoint,
                                  const zmq::error_t& failure) {
  return errno_error(format_text("cannot {} {}: {}", what, endpoint, failure.what()),
                     failure.num());
}

/// The file that stands for a listening ipc socket. ZeroMQ takes the place of one that was left
/// behind, and leaves its own behind.
class SocketFile {
 public:
  explicit SocketFile(const std::string& endpoint) {
    if (!endpoint.starts_with(kIpc)) return;
    path_ = endpoint.substr(kIpc.size());
    if (::stat(path_.c_str(), &made_) != 0) path_.clear();
  }
  SocketFile(const SocketFile&) = delete;
  SocketFile& operator=(const SocketFile&) = delete;
  ~SocketFile() {
    struct stat found {};
    if (path_.empty() || ::stat(path_.c_str(), &found) != 0) return;
    // Another leader may have taken its place since.
    if (found.st_dev == made_.st_dev && found.st_ino == made_.st_ino) ::unlink(path_.c_str());
  }

 private:
  static constexpr std::string_view kIpc = "ipc://";

  std::string path_;
  struct stat made_ {};
};

}  // namespace

// --- WakeUp -------------------------------------------------------------------------------------

Result<std::unique_ptr<WakeUp>> WakeUp::create() {
  const int descriptor = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (descriptor < 0) return errno_error("cannot make an event descriptor", errno);
  return std::unique_ptr<WakeUp>(new WakeUp(descriptor));
}

WakeUp::~WakeUp() { ::close(descriptor_); }

void WakeUp::wake() noexcept {
  const uint64_t one = 1;
  // It can only refuse when it is set already.
  [[maybe_unused]] const ssize_t written = ::write(descriptor_, &one, sizeof(one));
}

void WakeUp::clear() noexcept {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(descriptor_, &count, sizeof(count));
}

// --- MessageSocket ------------------------------------------------------------------------------

/// The socket goes before its context.
struct MessageSocket::Impl {
  Impl(zmq::socket_type type, int64_t max_message_bytes)
      : is_router(type == zmq::socket_type::router), socket(context, type) {
    socket.set(zmq::sockopt::linger, kLingerMs);
    socket.set(zmq::sockopt::maxmsgsize, max_message_bytes);
    socket.set(zmq::sockopt::reconnect_ivl, kReconnectMs);
    if (is_router) {
      socket.set(zmq::sockopt::sndhwm, kMaxUnsentMessages);
      // Sending to who is not there, or takes nothing, is an error and not silence.
      socket.set(zmq::sockopt::router_mandatory, true);
    } else {
      // Only while it is connected does it send, so that refusing means one thing.
      socket.set(zmq::sockopt::sndhwm, 0);
      socket.set(zmq::sockopt::immediate, true);
    }
  }

  zmq::context_t context{1};
  const bool is_router;
  zmq::socket_t socket;
  std::string endpoint;
  std::optional<SocketFile> file;
};

MessageSocket::MessageSocket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MessageSocket::~MessageSocket() = default;

Result<std::unique_ptr<MessageSocket>> MessageSocket::bind(const std::string& endpoint,
                                                           int64_t max_message_bytes) {
  try {
    auto impl = std::make_unique<Impl>(zmq::socket_type::router, max_message_bytes);
    impl->socket.bind(endpoint);
    impl->endpoint = impl->socket.get(zmq::sockopt::last_endpoint);
    impl->file.emplace(impl->endpoint);
    return std::unique_ptr<MessageSocket>(new MessageSocket(std::move(impl)));
  } catch (const zmq::error_t& failure) {
    return zmq_failure("listen at", endpoint, failure);
  }
}

Result<std::unique_ptr<MessageSocket>> MessageSocket::connect(const std::string& endpoint,
                                                              int64_t max_message_bytes) {
  try {
    auto impl = std::make_unique<Impl>(zmq::socket_type::dealer, max_message_bytes);
    impl->socket.connect(endpoint);
    impl->endpoint = endpoint;
    return std::unique_ptr<MessageSocket>(new MessageSocket(std::move(impl)));
  } catch (const zmq::error_t& failure) {
    return zmq_failure("connect to", endpoint, failure);
  }
}

const std::string& MessageSocket::endpoint() const noexcept { return impl_->endpoint; }

void MessageSocket::wait(const WakeUp& wake_up, Duration at_most) {
  zmq_pollitem_t items[] = {{impl_->socket.handle(), 0, ZMQ_POLLIN, 0},
                            {nullptr, wake_up.descriptor(), ZMQ_POLLIN, 0}};
  const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(
      std::clamp<Duration>(at_most, Duration::zero(), std::chrono::minutes(1)));
  if (zmq_poll(items, 2, static_cast<long>(milliseconds.count())) < 0 && zmq_errno() != EINTR) {
    throw zmq::error_t();
  }
}

std::optional<IncomingMessage> MessageSocket::try_receive() {
  IncomingMessage message;
  zmq::message_t frame;
  // All frames of a message come together: the first alone can be absent.
  const auto take_frame = [&] {
    for (;;) {
      try {
        return impl_->socket.recv(frame, zmq::recv_flags::dontwait).has_value();
      } catch (const zmq::error_t& failure) {
        if (failure.num() != EINTR) throw;
      }
    }
  };
  if (!take_frame()) return std::nullopt;
  note_receipt();
  if (impl_->is_router) {
    message.peer = frame.to_string();
    if (!frame.more() || !take_frame()) return message;
  }
  bool is_whole = true;
  const auto* bytes = frame.data<std::byte>();
  message.payload.assign(bytes, bytes + frame.size());
  while (frame.more() && take_frame()) is_whole = false;
  if (!is_whole) message.payload.clear();
  return message;
}

SendOutcome MessageSocket::try_send(std::string_view peer, std::span<const std::byte> payload) {
  note_sending();
  const auto send = [&](const void* bytes, size_t size, int flags) {
    int sent = 0;
    do {
      sent = zmq_send(impl_->socket.handle(), bytes, size, flags | ZMQ_DONTWAIT);
    } while (sent < 0 && zmq_errno() == EINTR);
    if (sent >= 0) return SendOutcome::kSent;
    if (zmq_errno() == EHOSTUNREACH) return SendOutcome::kGone;
    if (zmq_errno() != EAGAIN) throw zmq::error_t();
    return impl_->is_router ? SendOutcome::kFull : SendOutcome::kGone;
  };
  if (impl_->is_router) {
    const SendOutcome named = send(peer.data(), peer.size(), ZMQ_SNDMORE);
    if (named != SendOutcome::kSent) return named;
  }
  return send(payload.data(), payload.size(), 0);
}

}  // namespace kvbm::internal
