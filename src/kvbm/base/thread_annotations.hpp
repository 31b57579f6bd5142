// SPDX-License-Identifier: Apache-2.0
// Names for clang's thread safety attributes; nothing with other compilers.
// Source: https://clang.llvm.org/docs/ThreadSafetyAnalysis.html
#pragma once

#if defined(__clang__)
#define KVBM_INTERNAL_THREAD_ATTRIBUTE(x) __attribute__((x))
#else
#define KVBM_INTERNAL_THREAD_ATTRIBUTE(x)
#endif

/// On a class: its objects are locks.
#define KVBM_CAPABILITY(name) KVBM_INTERNAL_THREAD_ATTRIBUTE(capability(name))
/// On a class: its objects hold a lock for their lifetime.
#define KVBM_SCOPED_CAPABILITY KVBM_INTERNAL_THREAD_ATTRIBUTE(scoped_lockable)

/// On a member: touched only while the lock is held. PT_: the thing it points to is.
#define KVBM_GUARDED_BY(lock) KVBM_INTERNAL_THREAD_ATTRIBUTE(guarded_by(lock))
#define KVBM_PT_GUARDED_BY(lock) KVBM_INTERNAL_THREAD_ATTRIBUTE(pt_guarded_by(lock))

/// On a function: the caller holds the lock / must not hold it.
#define KVBM_REQUIRES(...) KVBM_INTERNAL_THREAD_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define KVBM_EXCLUDES(...) KVBM_INTERNAL_THREAD_ATTRIBUTE(locks_excluded(__VA_ARGS__))

/// On a function: it takes the lock, gives it back, or takes it where it returns `result`.
#define KVBM_ACQUIRE(...) KVBM_INTERNAL_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define KVBM_RELEASE(...) KVBM_INTERNAL_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))
#define KVBM_TRY_ACQUIRE(...) KVBM_INTERNAL_THREAD_ATTRIBUTE(try_acquire_capability(__VA_ARGS__))
#define KVBM_ASSERT_HELD(lock) KVBM_INTERNAL_THREAD_ATTRIBUTE(assert_capability(lock))
#define KVBM_RETURN_LOCK(lock) KVBM_INTERNAL_THREAD_ATTRIBUTE(lock_returned(lock))

/// On a function: it is right in a way that the analysis cannot see; a comment says why.
#define KVBM_NO_THREAD_SAFETY_ANALYSIS KVBM_INTERNAL_THREAD_ATTRIBUTE(no_thread_safety_analysis)
