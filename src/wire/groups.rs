//! Fields of consumer groups.

use std::collections::BTreeSet;

use quorate_proto::v1;
use quorate_types::{Assignor, ErrorCode, GroupId, InstanceId, MemberId, TopicName};

use crate::error::ErrorInfo;

/// Topics of one subscription at most.
pub const SUBSCRIPTION_TOPICS: usize = 1_000;
/// What their names take: every node keeps them in memory.
const SUBSCRIPTION_BYTES: usize = 64 << 10;
/// The longest text that a program may call itself, in bytes.
const CLIENT_ID: usize = 249;

fn invalid(message: impl ToString) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::InvalidRequest, message.to_string())
}

/// Reads a group id.
///
/// # Errors
/// `INVALID_GROUP_ID`, saying what is wrong.
pub fn group_id(name: &str) -> Result<GroupId, ErrorInfo> {
    let illegal = |error: quorate_types::InvalidName| {
        ErrorInfo::new(ErrorCode::InvalidGroupId, error.to_string())
    };
    GroupId::new(name).map_err(illegal)
}

/// Reads a member id.
///
/// # Errors
/// `INVALID_REQUEST`, saying what is wrong.
pub fn member_id(name: &str) -> Result<MemberId, ErrorInfo> {
    MemberId::new(name).map_err(invalid)
}

/// Reads an instance id.
///
/// # Errors
/// `INVALID_REQUEST`, saying what is wrong.
pub fn instance_id(name: Option<&str>) -> Result<Option<InstanceId>, ErrorInfo> {
    name.map(InstanceId::new).transpose().map_err(invalid)
}

/// Reads what a program calls itself.
///
/// # Errors
/// `INVALID_REQUEST` where it is too long, or has control characters: it is shown on terminals.
pub fn client_id(name: &str) -> Result<String, ErrorInfo> {
    if name.len() > CLIENT_ID {
        let length = name.len();
        let message = format!("client_id has at most {CLIENT_ID} bytes, this one has {length}");
        return Err(invalid(message));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid("client_id has control characters"));
    }
    Ok(name.to_owned())
}

/// Reads an assignor.
///
/// # Errors
/// `UNSUPPORTED_ASSIGNOR` for a number that means nothing.
pub fn assignor(number: i32) -> Result<Assignor, ErrorInfo> {
    match v1::Assignor::try_from(number) {
        Ok(v1::Assignor::Uniform) => Ok(Assignor::Uniform),
        Ok(v1::Assignor::Range) => Ok(Assignor::Range),
        Err(_) => {
            let message = format!("assignor is {number}: must be 0 (uniform) or 1 (range)");
            Err(ErrorInfo::new(ErrorCode::UnsupportedAssignor, message))
        }
    }
}

/// An assignor as the protocol has it.
pub fn assignor_to_proto(assignor: Assignor) -> v1::Assignor {
    match assignor {
        Assignor::Uniform => v1::Assignor::Uniform,
        Assignor::Range => v1::Assignor::Range,
    }
}

/// Reads the topics of a subscription, existing or not.
///
/// # Errors
/// `INVALID_REQUEST` for none, for more than [`SUBSCRIPTION_TOPICS`], or for more than 64 KiB of names;
/// `INVALID_TOPIC` for an illegal name.
pub fn subscription(names: &[String]) -> Result<BTreeSet<TopicName>, ErrorInfo> {
    if names.is_empty() {
        return Err(invalid(
            "a member names the topics that it reads: there are none",
        ));
    }
    if names.len() > SUBSCRIPTION_TOPICS {
        return Err(invalid(format!(
            "{} topics: a member reads {SUBSCRIPTION_TOPICS} at most",
            names.len()
        )));
    }
    let bytes: usize = names.iter().map(String::len).sum();
    if bytes > SUBSCRIPTION_BYTES {
        return Err(invalid(format!(
            "names of topics of {bytes} bytes: a member's take {SUBSCRIPTION_BYTES} at most"
        )));
    }
    let name = |name: &String| {
        let illegal = |error: quorate_types::InvalidTopicName| {
            ErrorInfo::new(ErrorCode::InvalidTopic, error.to_string())
        };
        TopicName::new(name).map_err(illegal)
    };
    names.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_names_have_their_codes() {
        let code = |error: ErrorInfo| error.code;
        assert_eq!(group_id("").map_err(code), Err(ErrorCode::InvalidGroupId));
        assert_eq!(
            member_id("a\n").map_err(code),
            Err(ErrorCode::InvalidRequest)
        );
        let long = "x".repeat(250);
        assert_eq!(
            instance_id(Some(&long)).map_err(code),
            Err(ErrorCode::InvalidRequest)
        );
        assert_eq!(
            client_id(&long).map_err(code),
            Err(ErrorCode::InvalidRequest)
        );
        let control = client_id("a\u{1b}[2J").map_err(code);
        assert_eq!(control, Err(ErrorCode::InvalidRequest));
        assert!(client_id("").is_ok());
        assert_eq!(
            assignor(2).map_err(code),
            Err(ErrorCode::UnsupportedAssignor)
        );
        for known in Assignor::ALL {
            assert_eq!(assignor(assignor_to_proto(known).into()), Ok(known));
        }
    }

    #[test]
    fn a_subscription_has_bounds() {
        let code = |names: &[String]| subscription(names).map_err(|error| error.code);
        assert_eq!(code(&[]), Err(ErrorCode::InvalidRequest));
        assert_eq!(code(&["a/b".to_owned()]), Err(ErrorCode::InvalidTopic));
        let names: Vec<String> = (0..=SUBSCRIPTION_TOPICS).map(|n| format!("t{n}")).collect();
        assert_eq!(code(&names), Err(ErrorCode::InvalidRequest));
        assert!(code(&names[1..]).is_ok());
        let long: Vec<String> = (0..300).map(|n| format!("{n:0>249}")).collect();
        assert_eq!(code(&long), Err(ErrorCode::InvalidRequest));
        assert!(code(&long[..200]).is_ok());
    }
}
