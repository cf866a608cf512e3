//! The program `qcowkit`.

fn main() -> std::process::ExitCode {
    qcowkit::cli::main()
}
