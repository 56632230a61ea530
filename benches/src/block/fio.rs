//! The peer: fio, asked for one figure.

use crate::missing::not_started;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Says early that fio is missing: a machine and an image take seconds to make.
///
/// # Errors
/// fio is missing (Debian's package `fio`).
pub(super) fn check() -> Result<(), String> {
    let fio = Command::new("fio").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    fio.map(drop).map_err(|e| not_started("fio", "fio", &e))
}

/// Operations a second of random 4 KiB reads (or `rw`) with these arguments.
///
/// # Errors
/// fio is missing (Debian's package `fio`), or says no.
pub(super) fn run(rw: &str, depth: usize, time: Duration, arguments: &[&str]) -> Result<f64, String> {
    let runtime = format!("--runtime={}ms", time.as_millis());
    let rw = format!("--rw={rw}");
    let depth = format!("--iodepth={depth}");
    let output = Command::new("fio")
        .args(["--name=peer", "--bs=4k", "--norandommap", "--randrepeat=0", "--gtod_reduce=1"])
        .args(["--time_based", "--output-format=json", &rw, &depth, &runtime])
        .args(arguments)
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| not_started("fio", "fio", &e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Some engines print a line before the object.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let read: serde_json::Value = serde_json::from_str(json)
        .map_err(|e| format!("fio's output: {e}: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    let iops = |kind: &str| read["jobs"][0][kind]["iops"].as_f64().unwrap_or(0.0);
    match iops("read") + iops("write") {
        0.0 => Err(format!("fio did nothing: {}", String::from_utf8_lossy(&output.stderr).trim())),
        sum => Ok(sum),
    }
}

/// A server of an image by NBD, ended when dropped.
pub(super) struct Nbd(Child);

impl Nbd {
    /// Serves `image` on the UNIX socket `socket`.
    ///
    /// # Errors
    /// qemu-nbd is missing (Debian's package `qemu-utils`), or does not come up.
    pub(super) fn serve(image: &Path, socket: &Path) -> Result<Nbd, String> {
        let mut command = Command::new("qemu-nbd");
        command
            .args(["--format=raw", "--cache=none", "--aio=io_uring", "--persistent", "--shared=4"])
            .arg(format!("--socket={}", socket.display()))
            .arg(image);
        Nbd::start(&mut command, "qemu-nbd", "qemu-utils", socket)
    }

    /// Has qemu-storage-daemon serve a qcow2 image on the UNIX socket `socket`, under the name `disk`.
    ///
    /// # Errors
    /// qemu-storage-daemon is missing (Debian's package `qemu-system-common`), or does not come up.
    pub(super) fn serve_qcow2(image: &Path, socket: &Path) -> Result<Nbd, String> {
        let file =
            format!("driver=file,node-name=file,filename={},cache.direct=on,aio=io_uring", image.display());
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &file, "--blockdev", "driver=qcow2,node-name=disk,file=file"]);
        command.args(["--nbd-server", &server, "--export", "type=nbd,id=disk,node-name=disk,writable=on"]);
        Nbd::start(&mut command, "qemu-storage-daemon", "qemu-system-common", socket)
    }

    fn start(command: &mut Command, name: &str, package: &str, socket: &Path) -> Result<Nbd, String> {
        let mut nbd = Nbd(command.spawn().map_err(|e| not_started(name, package, &e))?);
        let start = Instant::now();
        while !socket.exists() {
            if let Ok(Some(status)) = nbd.0.try_wait() {
                return Err(format!("{name} ended: {status}"));
            }
            if start.elapsed() > Duration::from_secs(5) {
                return Err(format!("{name} made no socket in 5 s"));
            }
            std::thread::yield_now();
        }
        Ok(nbd)
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
