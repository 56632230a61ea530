//! The control protocol as values: a request is a JSON object on one line, and so is its reply.
//!
//! ```text
//! {"version":1,"command":"stats","domid":3}
//! {"version":1,"ok":{"domid":0,"devices":[...],"next":null}}
//! {"version":1,"error":{"message":"command: found \"reboot\", expected stats, totals, image, bridge or capture"}}
//! ```

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::bridge_query::BridgeQuery;

/// The version of requests and replies.
pub const VERSION: u64 = 1;
/// The most bytes of a request, its newline included.
pub const MAX_REQUEST: usize = 4096;
/// The most bytes of a reply, its newline included.
pub const MAX_REPLY: usize = 256 << 10;

/// The commands, in words.
const COMMANDS: &str = "stats, totals, image, bridge or capture";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `stats`: the counters of devices.
    Stats(StatsQuery),
    /// `totals`: the sums of the counters of each domain's devices.
    Totals(TotalsQuery),
    /// `capture`: the frames that cross a vif's port, as pcapng behind the reply.
    Capture(CaptureQuery),
    /// `image`: a disk's image, and a change of it.
    Image(ImageQuery),
    /// `bridge`: dom0's bridges, and changes of them.
    Bridge(BridgeQuery),
}

/// Which disk's image, and what is to become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageQuery {
    /// The frontend's domain.
    pub domid: u16,
    /// The disk's number.
    pub devid: u32,
    /// `resize`, to `bytes`, or `snapshot`; nothing without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// How long the disk is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Which devices, in the order of kind, domain and number. Without any condition all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsQuery {
    /// Those of this kind: `vbd` or `vif`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Those whose frontend is in this domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domid: Option<u16>,
    /// Those with this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devid: Option<u32>,
    /// Those behind this one, which need not exist any more: `next` of an earlier reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<DeviceId>,
}

/// Which domains, in the order of their numbers. Without any condition all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TotalsQuery {
    /// This one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domid: Option<u16>,
    /// Those behind this one: `next` of an earlier reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u16>,
}

/// Which frames are captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaptureQuery {
    /// The vif's domain.
    pub domid: u16,
    /// Its number.
    pub devid: u32,
    /// The most bytes of a frame; all of them without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// Those from or to this MAC or IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Those from or to this port of TCP, UDP or SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Those of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ether_type: Option<u16>,
    /// So many, and then the connection is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// A device of the backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceId {
    /// Its kind: `vbd` or `vif`.
    pub kind: String,
    /// The frontend's domain.
    pub domid: u16,
    /// Its number.
    pub devid: u32,
}

impl Request {
    /// Parses a line, without its newline.
    ///
    /// # Errors
    /// What is wrong with it: names the field, what was found and what was expected.
    pub fn parse(line: &[u8]) -> Result<Request, String> {
        let value = serde_json::from_slice(line).map_err(|e| format!("the request is not JSON: {e}"))?;
        let Value::Object(mut fields) = value else {
            return Err("the request is not a JSON object".into());
        };
        match fields.remove("version") {
            Some(version) if version == VERSION => {}
            version => return Err(unexpected("version", version, &VERSION.to_string())),
        }
        let request = match fields.remove("command") {
            Some(command) if command == "stats" => Request::Stats(StatsQuery {
                kind: take(&mut fields, "kind")?,
                domid: take(&mut fields, "domid")?,
                devid: take(&mut fields, "devid")?,
                after: take(&mut fields, "after")?,
            }),
            Some(command) if command == "totals" => Request::Totals(TotalsQuery {
                domid: take(&mut fields, "domid")?,
                after: take(&mut fields, "after")?,
            }),
            Some(command) if command == "image" => Request::Image(ImageQuery {
                domid: need(&mut fields, "domid")?,
                devid: need(&mut fields, "devid")?,
                action: take(&mut fields, "action")?,
                bytes: take(&mut fields, "bytes")?,
            }),
            Some(command) if command == "capture" => Request::Capture(CaptureQuery {
                domid: need(&mut fields, "domid")?,
                devid: need(&mut fields, "devid")?,
                snaplen: take(&mut fields, "snaplen")?,
                host: take(&mut fields, "host")?,
                port: take(&mut fields, "port")?,
                ether_type: take(&mut fields, "ether_type")?,
                count: take(&mut fields, "count")?,
            }),
            Some(command) if command == "bridge" => {
                let query = serde_json::from_value(Value::Object(std::mem::take(&mut fields)));
                Request::Bridge(query.map_err(|e| format!("bridge: {e}"))?)
            }
            command => return Err(unexpected("command", command, COMMANDS)),
        };
        match fields.keys().next() {
            Some(field) => Err(format!("{}: the command has no such field", shortened(field))),
            None => Ok(request),
        }
    }

    /// Encodes the request as a line.
    pub fn encode(&self) -> Vec<u8> {
        let (command, query) = match self {
            Request::Stats(query) => ("stats", json!(query)),
            Request::Totals(query) => ("totals", json!(query)),
            Request::Capture(query) => ("capture", json!(query)),
            Request::Image(query) => ("image", json!(query)),
            Request::Bridge(query) => ("bridge", json!(query)),
        };
        let mut fields = Map::new();
        fields.insert("version".into(), VERSION.into());
        fields.insert("command".into(), command.into());
        if let Value::Object(query) = query {
            fields.extend(query);
        }
        line(&Value::Object(fields))
    }
}

/// Encodes a reply as a line. One that would be longer than [`MAX_REPLY`] becomes an error that says so.
pub fn encode_reply(reply: Result<Value, String>) -> Vec<u8> {
    let encoded = match reply {
        Ok(ok) => line(&json!({"version": VERSION, "ok": ok})),
        Err(message) => line(&json!({"version": VERSION, "error": {"message": message}})),
    };
    if encoded.len() <= MAX_REPLY {
        return encoded;
    }
    encode_reply(Err(format!("the reply has {} bytes, and at most {MAX_REPLY} are sent", encoded.len())))
}

/// Parses a reply's line: what is in its field `ok`.
///
/// # Errors
/// The reply's error, or why it is not a reply of this version.
pub fn parse_reply(line: &[u8]) -> Result<Value, String> {
    let mut reply: Value = serde_json::from_slice(line).map_err(|e| format!("the reply is not JSON: {e}"))?;
    if let Some(message) = reply["error"]["message"].as_str() {
        return Err(message.to_owned());
    }
    match reply["version"].as_u64() {
        Some(VERSION) => {}
        _ => return Err(unexpected("version", reply.get("version").cloned(), &VERSION.to_string())),
    }
    match reply.get_mut("ok") {
        Some(ok) => Ok(ok.take()),
        None => Err("the reply has neither ok nor error".into()),
    }
}

/// Takes a field out of a request; null is the same as none.
fn take<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Result<Option<T>, String> {
    let value = fields.remove(name).unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|e| format!("{name}: {e}"))
}

/// Takes a field that a request must have.
fn need<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Result<T, String> {
    take(fields, name)?.ok_or_else(|| unexpected(name, None, "a number"))
}

fn unexpected(field: &str, found: Option<Value>, expected: &str) -> String {
    match found {
        Some(found) => format!("{field}: found {}, expected {expected}", shortened(&found.to_string())),
        None => format!("{field}: missing, expected {expected}"),
    }
}

/// Enough of a client's text to recognise it.
pub(crate) fn shortened(text: &str) -> String {
    ring_abi::xenbus::value::Excerpt(text).to_string()
}

fn line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::super::bridge_query::StationId;
    use super::*;
    use proptest::prelude::*;

    fn error(request: &str) -> String {
        Request::parse(request.as_bytes()).unwrap_err()
    }

    #[test]
    fn encoded_requests_are_parsed_to_themselves() {
        let after = DeviceId { kind: "vif".into(), domid: 3, devid: 0 };
        let requests = [
            Request::Stats(StatsQuery::default()),
            Request::Stats(StatsQuery {
                kind: Some("vbd".into()),
                domid: Some(3),
                devid: Some(51712),
                after: Some(after),
            }),
            Request::Totals(TotalsQuery { domid: Some(3), after: Some(2) }),
            Request::Capture(CaptureQuery {
                domid: 3,
                host: Some("10.0.0.1".into()),
                ..CaptureQuery::default()
            }),
            Request::Bridge(BridgeQuery::List {}),
            Request::Bridge(BridgeQuery::Fdb {
                bridge: "xenbr0".into(),
                after: Some(StationId { mac: "00:16:3e:00:00:01".into(), vlan: 10 }),
            }),
            Request::Image(ImageQuery {
                domid: 3,
                devid: 51712,
                action: Some("resize".into()),
                bytes: Some(512),
            }),
        ];
        for request in requests {
            let line = request.encode();
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
            assert_eq!(Request::parse(&line), Ok(request));
        }
    }

    #[test]
    fn invalid_request_is_refused_with_the_name_of_what_is_wrong() {
        let cases = [
            (r#"{"command":"stats"}"#, "version: missing, expected 1"),
            (r#"{"version":2,"command":"stats"}"#, "version: found 2, expected 1"),
            (r#"{"version":"1","command":"stats"}"#, "version: found \"1\", expected 1"),
            (r#"{"version":1}"#, "command: missing, expected stats, totals, image, bridge or capture"),
            (
                r#"{"version":1,"command":"reboot"}"#,
                "command: found \"reboot\", expected stats, totals, image, bridge or capture",
            ),
            (r#"{"version":1,"command":"image","devid":1}"#, "domid: missing, expected a number"),
            (r#"{"version":1,"command":"image","domid":1,"devid":1,"bytes":-1}"#, "bytes: invalid value"),
            (r#"{"version":1,"command":"bridge"}"#, "bridge: missing field `action`"),
            (r#"{"version":1,"command":"bridge","action":"list","x":1}"#, "bridge: unknown field `x`"),
            (r#"{"version":1,"command":"bridge","action":"stp"}"#, "bridge: unknown variant `stp`"),
            (
                r#"{"version":1,"command":"bridge","action":"fdb","bridge":"b","after":{"mac":"m"}}"#,
                "bridge: missing field `vlan`",
            ),
            (r#"{"version":1,"command":"capture","domid":3}"#, "devid: missing, expected a number"),
            (r#"{"version":1,"command":"stats","domain":3}"#, "domain: the command has no such field"),
            (r#"{"version":1,"command":"totals","devid":3}"#, "devid: the command has no such field"),
            (r#"{"version":1,"command":"stats","domid":"web"}"#, "domid: invalid type: string \"web\""),
            (r#"{"version":1,"command":"stats","domid":70000}"#, "domid: invalid value: integer `70000`"),
            (r#"{"version":1,"command":"stats","after":{"kind":"vbd","x":1}}"#, "after: unknown field `x`"),
            ("[1]", "the request is not a JSON object"),
            ("", "the request is not JSON"),
            ("\u{7f}ELF", "the request is not JSON"),
        ];
        for (request, expected) in cases {
            assert!(error(request).starts_with(expected), "{request}: {}", error(request));
        }
        assert!(Request::parse(b"\xff\xfe{").is_err());
        assert!(error(&"[".repeat(4000)).contains("recursion limit"));
        let long = format!(r#"{{"version":1,"command":"{}"}}"#, "x".repeat(4000));
        assert!(error(&long).len() < 400, "{}", error(&long));
    }

    proptest! {
        #[test]
        fn arbitrary_lines_are_refused_without_panic(bytes: Vec<u8>, text in "\\PC{0,80}") {
            let nested = format!(r#"{{"version":1,"command":"stats","after":{text}}}"#);
            for line in [&bytes[..], text.as_bytes(), nested.as_bytes()] {
                if let Err(message) = Request::parse(line) {
                    prop_assert!(encode_reply(Err(message)).len() <= MAX_REPLY);
                }
                let _ = parse_reply(line);
            }
        }
    }

    #[test]
    fn replies_are_parsed_to_their_value_or_error() {
        let parse = |reply| parse_reply(&encode_reply(reply));
        assert_eq!(parse(Ok(json!({"devices": []}))), Ok(json!({"devices": []})));
        assert_eq!(parse(Err("no".into())), Err("no".into()));
        assert_eq!(parse_reply(br#"{"version":2,"ok":1}"#), Err("version: found 2, expected 1".into()));
        assert!(parse_reply(br#"{"version":1}"#).unwrap_err().contains("neither"));
    }

    #[test]
    fn reply_that_is_too_long_becomes_an_error() {
        let encoded = encode_reply(Ok(Value::String("x".repeat(MAX_REPLY))));
        assert!(encoded.len() < 1000);
        assert!(parse_reply(&encoded).unwrap_err().contains("at most 262144 are sent"));
    }
}
