//! Addresses as they are typed.

/// Reads an address of something that runs: a host, by name or number, and a port.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let address = host_and_any_port(text)?;
    if address.ends_with(":0") { Err("the port must not be 0".to_owned()) } else { Ok(address) }
}

/// Reads an address to listen on, where port 0 stands for any free port.
pub(crate) fn host_and_any_port(text: &str) -> Result<String, String> {
    let address = text.trim();
    let expected = || "expected HOST:PORT".to_owned();
    let (host, port) = address.rsplit_once(':').ok_or_else(expected)?;
    let is_name = |host: &str| !host.is_empty() && !host.contains([':', '/', '[', ']', '@', ',']);
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(number) => number.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_name(host) && !host.contains(char::is_whitespace),
    };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if is_host && is_port { Ok(address.to_owned()) } else { Err(expected()) }
}

/// Reads the endpoint of a coordinator: an address, with or without `http://` or `https://` before
/// it.
pub(crate) fn coordinator_endpoint(text: &str) -> Result<String, String> {
    let endpoint = text.trim().trim_end_matches('/');
    let address = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    match host_port(address.unwrap_or(endpoint)) {
        Ok(_) => Ok(endpoint.to_owned()),
        Err(_) => Err("expected http://HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in ["127.0.0.1:7101", "n1:7101", "n-1.example:1", "[::1]:7101", " n1:7101 "] {
            assert_eq!(host_port(text).as_deref(), Ok(text.trim()));
        }
        let wrong =
            ["", "n1", ":7101", "n1:", "n1:x", "n1:70000", "n1:+1", "a b:1", "::1:7101", "[n1]:1"];
        for text in wrong {
            assert!(host_and_any_port(text).is_err(), "{text:?} was taken");
        }
        assert!(host_and_any_port("n1:0").is_ok() && host_port("n1:0").is_err());
    }

    #[test]
    fn a_coordinator_is_an_address_with_or_without_a_scheme() {
        for text in ["http://127.0.0.1:2379", "https://etcd-1:2379", "etcd-1:2379"] {
            assert_eq!(coordinator_endpoint(text).as_deref(), Ok(text));
        }
        assert_eq!(coordinator_endpoint(" http://n1:1/ ").as_deref(), Ok("http://n1:1"));
        for text in ["", "foo", "http://", "http://n1", "ftp://n1:1", "http://n1:0"] {
            assert!(coordinator_endpoint(text).is_err(), "{text:?} was taken");
        }
    }
}
