//! What a coordinator's user can choose.

use std::fmt;
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::CoordinatorError;

/// How a coordinator is reached. [`CoordinatorOptions::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// The servers, as `http://host:port`; all of one etcd cluster. They are tried in turn.
    pub endpoints: Vec<String>,
    /// How long the session lives without a word from this process. Rounded up to whole seconds,
    /// and raised by the server to its own minimum (2 s by default). Shorter finds a dead node
    /// sooner and bears shorter pauses. Default 5 s.
    pub session_timeout: Duration,
    /// How long a request may take, retries included, before it is given up. Default 5 s.
    pub request_timeout: Duration,
    /// How long connecting to one endpoint may take. Default 1 s.
    pub connect_timeout: Duration,
    /// The etcd user to act as.
    pub user_password: Option<UserPassword>,
    /// How `https` endpoints are trusted, and who this process is to them.
    pub tls: Option<TlsSettings>,
    /// The path that everything is kept under in etcd, so that clusters can share one. Default
    /// `/trireme`.
    pub namespace: String,
}

/// A name and a password.
#[derive(Clone)]
pub struct UserPassword {
    /// The name.
    pub user: String,
    /// The password; never printed.
    pub password: String,
}

impl fmt::Debug for UserPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserPassword").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Certificates, each in PEM.
#[derive(Clone, Default)]
pub struct TlsSettings {
    /// The authority that the servers' certificates are checked by.
    pub authority: Option<Vec<u8>>,
    /// This process's certificate and private key, where the servers ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the servers' certificates are for, where it is not the endpoint's host.
    pub domain: Option<String>,
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// The namespace where none is chosen.
pub const DEFAULT_NAMESPACE: &str = "/trireme";

/// The longest session: past it, a dead node would be missed for longer than anybody means.
const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl CoordinatorOptions {
    /// Returns the defaults for a coordinator at these endpoints.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            session_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            user_password: None,
            tls: None,
            namespace: DEFAULT_NAMESPACE.to_owned(),
        }
    }

    /// Says what is wrong with the options, if anything is.
    pub fn validate(&self) -> Result<(), CoordinatorError> {
        let invalid = |reason: String| Err(CoordinatorError::InvalidOptions(reason));
        if self.endpoints.is_empty() {
            return invalid("no endpoint is given".to_owned());
        }
        if self.session_timeout.is_zero() || self.session_timeout > SESSION_TIMEOUT_MAX {
            return invalid(format!(
                "a session timeout of {:?} is not between 0 and {SESSION_TIMEOUT_MAX:?}",
                self.session_timeout
            ));
        }
        if self.request_timeout.is_zero() || self.connect_timeout.is_zero() {
            return invalid("a timeout of zero".to_owned());
        }
        let namespace = &self.namespace;
        if !namespace.is_empty() && crate::path::check(namespace).is_err() {
            return invalid(format!("the namespace '{namespace}' is not a path such as /trireme"));
        }
        Ok(())
    }

    /// Returns the session's time to live as the server is asked for it, in whole seconds.
    pub(crate) fn session_ttl(&self) -> i64 {
        let whole =
            self.session_timeout.as_secs() + u64::from(self.session_timeout.subsec_nanos() > 0);
        i64::try_from(whole).unwrap_or(i64::MAX)
    }

    /// Returns how long one endpoint may take to answer before the next one is asked.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.request_timeout / 4
    }

    pub(crate) fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            // A server cut off from its cluster ends its streams, rather than fall silent.
            .with_require_leader(true);
        if let Some(UserPassword { user, password }) = &self.user_password {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        if let Some(tls) = &self.tls {
            let mut settings = TlsOptions::new();
            if let Some(authority) = &tls.authority {
                settings = settings.ca_certificate(Certificate::from_pem(authority));
            }
            if let Some((certificate, key)) = &tls.identity {
                settings = settings.identity(Identity::from_pem(certificate, key));
            }
            if let Some(domain) = &tls.domain {
                settings = settings.domain_name(domain);
            }
            options = options.with_tls(settings);
        }
        options
    }
}
