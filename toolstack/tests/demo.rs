//! A short demo run: it succeeds, its JSON report is complete, and no sockets remain.

mod common;

use common::program::{program, run};
use common::{command, texts};
use std::path::Path;

#[test]
fn demo_reports_no_problem() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("demo");
    let mut demo = command(Path::new("/nonexistent"));
    demo.args(["demo", "--json", "--size", "8", "--time", "300", "--keep"]).arg(&kept);
    let output = demo.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}{stdout}");
    assert_eq!(stderr, "");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    for guest in report["guests"].as_array().unwrap() {
        assert_eq!(guest["disk"]["bytes"], 8 << 20);
        assert_eq!(guest["disk"]["sha256"], guest["image_sha256"]);
        assert!(guest["net"]["large"]["frames"].as_u64().unwrap() > 100, "{guest}");
        assert!(guest["flipped"]["frames"].as_u64().unwrap() > 100, "{guest}");
        assert_eq!(guest["flipped"]["frames"], guest["flipped_peer"]["frames"]);
        assert!(guest["net"]["ping"]["p50_us"].as_f64().unwrap() > 0.0, "{guest}");
    }
    for image in ["alice.img", "bob.img"] {
        run(program("e2fsck", "e2fsprogs").args(["-f", "-n"]).arg(kept.join(image)));
    }
    let left: Vec<_> = std::fs::read_dir(kept.join("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".sock")), "{left:?}");
}
