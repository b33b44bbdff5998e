//! Unpacking an archive, as ratios to `tar -xf` of the same bytes into the same file system, and the memory it takes.
//!
//! Both sides are processes of their own, and take turns. The directory is removed after each run, so that
//! nobody pays for the other's pages; where temporary files lie (`TMPDIR`) decides what is measured: a disk whose
//! write-back is the bottleneck makes everything equal, a tmpfs shows what programs cost.
//! `cargo bench --bench storage`; `BENCH_MIB` and `BENCH_FILES` set the archive (256 MiB, 10,000 files),
//! `PAIRS` the number of pairs (7). Targets: 1.15, and 32 MiB above idle.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compute_ctl::limits;
use compute_ctl::postgres::{ClearRule, DataDir};
use compute_ctl::storage::Progress;
use compute_ctl::storage::unpack::{Options, unpack_file};
use tokio_util::sync::CancellationToken;

/// The argument that makes this program the unpacker.
const UNPACK: &str = "--unpack";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` runs benchmarks too, with this flag, to see that they start at all.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    if let Some(at) = arguments.iter().position(|argument| argument == UNPACK) {
        unpacker(Path::new(&arguments[at + 1]), Path::new(&arguments[at + 2]));
        return;
    }
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (mib, files, pairs) = (number("BENCH_MIB", 256), number("BENCH_FILES", 10_000), number("PAIRS", 7));
    let root = tempfile::tempdir().expect("a directory for temporary files");
    let plain = root.path().join("plain.tar");
    write_tar(&plain, mib << 20, files);
    println!("{mib} MiB in {files} files below {}; {pairs} interleaved pairs each\n", root.path().display());
    measure(&root.path().join("out"), &plain, "plain", &[], pairs);
    measure(&root.path().join("out"), &compressed(&plain, "gzip", "gz"), "gzip", &["-z"], pairs);
    measure(&root.path().join("out"), &compressed(&plain, "zstd", "zst"), "zstd", &["--zstd"], pairs);
}

/// What a cluster is like: many small files of some pages, a few large ones, all of it half compressible.
fn write_tar(path: &Path, bytes: usize, files: usize) {
    let mut random = 1_u64;
    let mut page = || {
        let mut page = Vec::with_capacity(8192);
        while page.len() < 8192 {
            // xorshift
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            page.extend_from_slice(&random.to_le_bytes());
            page.extend_from_slice(b"as rows, ");
            page.extend_from_slice(&[0; 7]);
        }
        page.truncate(8192);
        page
    };
    let file = File::create(path).expect("an own directory");
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    let mut add = |name: String, pages: usize, page: &mut dyn FnMut() -> Vec<u8>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(pages as u64 * 8192);
        let data: Vec<u8> = (0..pages).flat_map(|_| page()).collect();
        tar.append_data(&mut header, name, &data[..]).expect("it can be written");
    };
    for number in 0..files {
        add(format!("base/{}/{number}", number / 1000), 1, &mut page);
    }
    let mut left = bytes.saturating_sub(files * 8192) / 8192;
    let mut number = 0;
    while left > 0 {
        let pages = left.min(2048);
        add(format!("base/large/{number}"), pages, &mut page);
        (left, number) = (left - pages, number + 1);
    }
    tar.into_inner().and_then(|mut file| file.flush()).expect("it can be written");
}

fn compressed(plain: &Path, program: &str, extension: &str) -> PathBuf {
    let path = plain.with_extension(extension);
    let file = File::create(&path).expect("an own directory");
    let status = Command::new(program).arg("-c").arg(plain).stdout(file).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} is needed");
    path
}

fn measure(out: &Path, archive: &Path, name: &str, flags: &[&str], pairs: usize) {
    let (mut floor, mut ours, mut memory) = (Vec::new(), Vec::new(), 0);
    // The first pair is for the caches.
    for pair in 0..=pairs {
        fs::create_dir(out).expect("it was removed");
        let mut tar = Command::new("tar");
        tar.args(flags).arg("-xf").arg(archive).arg("-C").arg(out);
        let (theirs, _) = run(tar);
        fs::remove_dir_all(out).expect("an own directory");
        fs::create_dir(out).expect("it was removed");
        let mut unpacker = Command::new(std::env::current_exe().expect("this program"));
        unpacker.arg(UNPACK).arg(archive).arg(out);
        let (own, output) = run(unpacker);
        fs::remove_dir_all(out).expect("an own directory");
        if pair > 0 {
            floor.push(theirs);
            ours.push(own);
            memory = memory.max(output.trim().parse::<u64>().expect("it prints a number"));
        }
    }
    let mut ratios: Vec<f64> =
        ours.iter().zip(&floor).map(|(own, theirs)| own.as_secs_f64() / theirs.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    println!("{name}: unpack over tar -xf (target 1.15), memory above idle (target 32 MiB)");
    println!(
        "  p50 {:.0} ms over {:.0} ms: ratio {:.2} (within pairs {:.2} .. {:.2}); at most {:.1} MiB\n",
        median(&mut ours).as_secs_f64() * 1e3,
        median(&mut floor).as_secs_f64() * 1e3,
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
        memory as f64 / 1024.0,
    );
}

fn run(mut command: Command) -> (Duration, String) {
    let begun = Instant::now();
    let output = command.output().expect("it starts");
    let took = begun.elapsed();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", errors.lines().next().unwrap_or_default());
    (took, String::from_utf8_lossy(&output.stdout).into_owned())
}

fn median(figures: &mut [Duration]) -> Duration {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

/// Unpacks as `storage.kind` `archive` does, and prints how many KiB more it had than before.
fn unpacker(archive: &Path, into: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(limits::WORKERS)
        .enable_all()
        .build()
        .expect("threads can be had");
    runtime.block_on(async {
        let idle = resident("VmRSS");
        let pgdata = DataDir::claim(into).expect("an own directory");
        let never = CancellationToken::new();
        pgdata.clear(ClearRule::default(), &never).expect("it is empty");
        let file = File::open(archive).expect("it was just written");
        let progress = Arc::new(Progress::default());
        unpack_file(file, pgdata, Options::default(), progress, &never).await.expect("a good archive");
        println!("{}", resident("VmHWM") - idle);
    });
}

fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number of KiB")
}
