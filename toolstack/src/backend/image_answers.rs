//! Answers the control socket's requests about the images of disks.

use serde_json::{Value, json};
use xenstore::DomId;

use super::image_changes::Change;
use super::image_controls::{ImageControls, Job, Shown};
use crate::control::protocol::{ImageQuery, shortened};

/// Answers a request.
///
/// # Errors
/// No such disk is served, or what is asked for cannot be done with its image.
pub fn answer(images: &ImageControls, domid: DomId, query: &ImageQuery) -> Result<Value, String> {
    let &ImageQuery { domid: front, devid, ref action, bytes } = query;
    let change = match (action.as_deref(), bytes) {
        (None | Some("cancel"), None) => None,
        (Some("resize"), Some(bytes)) => Some(Change::Resize(bytes)),
        (Some("resize"), None) => return Err("bytes: missing, expected the disk's new length".into()),
        (Some("snapshot"), None) => Some(Change::Snapshot),
        (Some("commit"), None) => Some(Change::Commit),
        (Some("stream"), None) => Some(Change::Stream),
        (None | Some("snapshot" | "commit" | "stream" | "cancel"), Some(_)) => {
            return Err("bytes: found some, expected none".into());
        }
        (Some(action), _) => {
            let expected = "resize, snapshot, commit, stream or cancel";
            return Err(format!("action: found {:?}, expected {expected}", shortened(action)));
        }
    };
    match change {
        Some(change) => drop(images.start(front, devid, change)?),
        None if action.is_some() => images.cancel(front, devid)?,
        None => {}
    }
    let Shown { image, file, job } = images.show(front, devid)?;
    let image = image.map(|image| {
        json!({
            "format": image.format.to_string(),
            "cluster_size": image.cluster_size,
            "bytes": image.bytes,
            "file": file.map(|(device, inode)| json!({"device": device, "inode": inode})),
            "layers": image.layers.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        })
    });
    Ok(json!({ "domid": domid.0, "image": image, "job": job.as_deref().map(shown) }))
}

fn shown(job: &Job) -> Value {
    let error = job.outcome.get().and_then(|outcome| outcome.as_ref().err());
    let bytes = |bytes: u64| job.change.is_long().then_some(bytes);
    json!({
        "id": job.id,
        "action": job.change.name(),
        "runs": job.runs(),
        "error": error,
        "done": bytes(job.progress.done()),
        "total": bytes(job.progress.total()),
    })
}
