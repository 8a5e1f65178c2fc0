//! TLS for the endpoint: a certificate chain and its key, read once at the start.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// Why a certificate cannot be used. One line each.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} {path}: {reason}")]
    Unreadable { what: &'static str, path: PathBuf, reason: String },
    #[error("{0} holds no certificate: it must be PEM, the server's own first, then those that vouch for it")]
    Empty(PathBuf),
    #[error("the certificate {cert} and the key {key} do not go together: {reason}")]
    Unfit { cert: PathBuf, key: PathBuf, reason: String },
}

/// The server's side of TLS.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads PEM files: a certificate chain, the server's own first, and its private key.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let unreadable = |what, path: &Path| {
            let path = path.to_owned();
            move |reason: &dyn fmt::Display| TlsError::Unreadable { what, path, reason: reason.to_string() }
        };
        let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| unreadable("the certificate", cert)(&error))?;
        if chain.is_empty() {
            return Err(TlsError::Empty(cert.into()));
        }
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("the key", key)(&error))?;
        let unfit = |error: tokio_rustls::rustls::Error| TlsError::Unfit {
            cert: cert.into(),
            key: key.into(),
            reason: error.to_string(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.0.accept(stream).await
    }
}
