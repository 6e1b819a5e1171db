//! Bytes in JSON, which knows text only: bytes that are text stand under their name, others as
//! base64 under the name with `_base64` behind it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Adds bytes to an object.
pub(crate) fn set_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Takes bytes out of an object; `None` if it holds none of that name.
pub(crate) fn take_bytes(
    object: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<Vec<u8>>, String> {
    let encoded_name = format!("{name}_base64");
    match (object.remove(name), object.remove(&encoded_name)) {
        (None, None) => Ok(None),
        (Some(Value::String(text)), None) => Ok(Some(text.into_bytes())),
        (None, Some(Value::String(text))) => match STANDARD.decode(&text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(format!("\"{encoded_name}\" is not base64: {error}")),
        },
        (Some(_), Some(_)) => Err(format!("both \"{name}\" and \"{encoded_name}\" are given")),
        _ => Err(format!("\"{name}\" is not a string")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_come_back_whether_they_are_text_or_not() {
        for (bytes, form) in [
            (&b"Zo\xc3\xab\n"[..], json!({"key": "Zo\u{eb}\n"})),
            (b"\xff\x00", json!({"key_base64": "/wA="})),
            (b"", json!({"key": ""})),
        ] {
            let mut object = Map::new();
            set_bytes(&mut object, "key", bytes);
            assert_eq!(Value::Object(object.clone()), form);
            assert_eq!(take_bytes(&mut object, "key"), Ok(Some(bytes.to_vec())));
        }
    }

    #[test]
    fn what_is_no_bytes_is_refused() {
        for wrong in [
            json!({"key": 5}),
            json!({"key": null}),
            json!({"key_base64": "?"}),
            json!({"key": "a", "key_base64": "YQ=="}),
        ] {
            let Value::Object(mut object) = wrong else { unreachable!("all are objects") };
            assert!(take_bytes(&mut object, "key").is_err());
        }
    }
}
