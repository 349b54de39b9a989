//! Certificates from files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// What is in the files does not make a server.
    #[error("{} with the key {} is unfit: {reason}", certificate.display(), key.display())]
    Unfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a server's certificate, with those of its authorities behind it, and its key, both in PEM.
/// `protocols` are offered to clients, the preferred one first.
///
/// # Errors
/// [`CertificateError::Unfit`].
pub(crate) fn load(
    certificate: &Path,
    key: &Path,
    protocols: &[&[u8]],
) -> Result<TlsAcceptor, CertificateError> {
    let unfit = |reason: &dyn std::fmt::Display| CertificateError::Unfit {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: reason.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|e| unfit(&e))?;
    let chain: Result<Vec<_>, _> = chain.collect();
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unfit(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unfit(&e))?
        .with_no_client_auth()
        .with_single_cert(chain.map_err(|e| unfit(&e))?, secret)
        .map_err(|e| unfit(&e))?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
