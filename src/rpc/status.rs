//! Errors as gRPC statuses, both ways, once.

use std::collections::{BTreeMap, HashMap};

use quorate_broker::FetchError;
use quorate_replication::ProduceError;
use quorate_types::ErrorCode;
use quorate_wire::{DOMAIN, ErrorInfo, WireError, grpc_code};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The status of an error: the code says whether a retry makes sense, the details say what.
pub fn to_status(error: &ErrorInfo) -> Status {
    let metadata: HashMap<String, String> = error.metadata.clone().into_iter().collect();
    let details = ErrorDetails::with_error_info(error.code.name(), DOMAIN, metadata);
    let code = Code::from(grpc_code(error.code) as i32);
    Status::with_error_details(code, error.message.clone(), details)
}

/// The error in a status; none where it is no error of ours (the connection's, a proxy's).
pub fn from_status(status: &Status) -> Option<ErrorInfo> {
    let details = status.get_details_error_info()?;
    let code = ErrorCode::from_name(&details.reason).filter(|_| details.domain == DOMAIN)?;
    let metadata: BTreeMap<String, String> = details.metadata.into_iter().collect();
    Some(ErrorInfo {
        code,
        message: status.message().to_owned(),
        metadata,
    })
}

/// The error in a status, whatever it is.
pub(crate) fn told(status: &Status) -> ErrorInfo {
    from_status(status).unwrap_or_else(|| {
        ErrorInfo::new(
            ErrorCode::UnknownServerError,
            format!("{}: {}", status.code(), status.message()),
        )
    })
}

pub(crate) fn invalid(error: &WireError) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::InvalidRequest, error.to_string())
}

pub(crate) fn produce_error(error: &ProduceError) -> ErrorInfo {
    ErrorInfo::new(error.code(), error.to_string())
}

pub(crate) fn fetch_error(error: &FetchError) -> ErrorInfo {
    let mut info = ErrorInfo::new(error.code(), error.to_string());
    if let FetchError::DataLoss { epoch, from, to } = error {
        for (key, value) in [
            ("lost_from", from.to_string()),
            ("lost_to", to.to_string()),
            ("leader_epoch", epoch.to_string()),
        ] {
            info.metadata.insert(key.to_owned(), value);
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_the_wire_unchanged() {
        for code in ErrorCode::ALL {
            let mut error = ErrorInfo::new(*code, "what happened");
            error.metadata.insert("leader_id".into(), "2".into());
            assert_eq!(from_status(&to_status(&error)), Some(error));
        }
        assert_eq!(
            from_status(&Status::unavailable("connection refused")),
            None
        );
    }
}
