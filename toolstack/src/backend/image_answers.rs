//! Answers the control socket's requests about the images of disks.

use serde_json::{Value, json};
use xenstore::DomId;

use super::image_controls::{Change, ImageControls, Job};
use crate::control::protocol::{ImageQuery, shortened};

/// Answers a request.
///
/// # Errors
/// No such disk is served, or what is asked for cannot be done with its image.
pub fn answer(images: &ImageControls, domid: DomId, query: &ImageQuery) -> Result<Value, String> {
    let &ImageQuery { domid: front, devid, ref action, bytes } = query;
    let change = match (action.as_deref(), bytes) {
        (None, None) => None,
        (Some("resize"), Some(bytes)) => Some(Change::Resize(bytes)),
        (Some("resize"), None) => return Err("bytes: missing, expected the disk's new length".into()),
        (Some("snapshot"), None) => Some(Change::Snapshot),
        (None | Some("snapshot"), Some(_)) => return Err("bytes: found some, expected none".into()),
        (Some(action), _) => {
            return Err(format!("action: found {:?}, expected resize or snapshot", shortened(action)));
        }
    };
    if let Some(change) = change {
        images.start(front, devid, change)?;
    }
    let (image, job) = images.show(front, devid)?;
    let image = image.map(|image| {
        json!({
            "format": image.format.to_string(),
            "cluster_size": image.cluster_size,
            "bytes": image.bytes,
            "layers": image.layers.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        })
    });
    Ok(json!({ "domid": domid.0, "image": image, "job": job.as_deref().map(shown) }))
}

fn shown(job: &Job) -> Value {
    let outcome = job.outcome.get();
    let error = outcome.and_then(|outcome| outcome.as_ref().err());
    json!({ "id": job.id, "runs": outcome.is_none(), "error": error })
}
