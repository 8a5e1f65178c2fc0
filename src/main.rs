//! The `tierfs` binary: hands the command line to the library and ends with its exit code.

/// Requests to the remote are many small allocations; this one takes half the time of glibc's there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    tierfs::cli::main()
}
