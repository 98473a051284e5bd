//! From the bytes of a DNS query to the bytes of its answer, with no I/O of its own.
//!
//! Only A (and for `localhost` AAAA) is ever answered with an address. Other types of a permitted name have
//! no data, which also keeps SVCB and HTTPS hints (ECH keys, HTTP/3) from the guest; names that may not be
//! looked up do not exist. Never REFUSED: glibc asks on and on. What is not a query at all gets no answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::egress::Host;

/// Longest query taken; a question with EDNS is well below.
pub const MAX_QUERY_BYTES: usize = 1232;
/// Short, because a guest may cache longer than it lives between a snapshot and its restore.
const TTL_S: u32 = 30;

/// What becomes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Permitted,
    /// Loopback of the guest itself.
    Localhost,
    Absent,
}

/// Where the answer gets its verdicts and addresses from.
pub trait Names {
    /// May the name be looked up? Asked once per query.
    fn decide(&mut self, name: &Host) -> Verdict;
    /// The address of a permitted name; none if the execution may have no more names.
    fn find_address(&mut self, name: &Host) -> Option<Ipv4Addr>;
}

/// The answer to a query; none to what is not one.
pub fn answer(query: &[u8], names: &mut impl Names) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_QUERY_BYTES as u16);
        reply.edns = Some(edns);
    }
    reply.metadata.response_code = match (query.metadata.op_code, query.queries.as_slice()) {
        (OpCode::Query, [question]) if question.query_class() == DNSClass::IN => {
            resolve(question.name(), question.query_type(), names, &mut reply)
        }
        (OpCode::Query, [_]) => ResponseCode::NXDomain,
        (OpCode::Query, _) => ResponseCode::FormErr,
        _ => ResponseCode::NotImp,
    };
    reply.to_vec().ok()
}

fn resolve(
    name: &Name,
    record_type: RecordType,
    names: &mut impl Names,
    reply: &mut Message,
) -> ResponseCode {
    let text = name.to_ascii();
    let Ok(host) = Host::parse(text.strip_suffix('.').unwrap_or(&text)) else {
        return ResponseCode::NXDomain;
    };
    let data = match (names.decide(&host), record_type) {
        (Verdict::Absent, _) => return ResponseCode::NXDomain,
        (Verdict::Localhost, RecordType::A) => RData::A(A(Ipv4Addr::LOCALHOST)),
        (Verdict::Localhost, RecordType::AAAA) => RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)),
        (Verdict::Permitted, RecordType::A) => match names.find_address(&host) {
            Some(address) => RData::A(A(address)),
            None => return ResponseCode::NXDomain,
        },
        _ => return ResponseCode::NoError,
    };
    reply.add_answer(Record::from_rdata(name.clone(), TTL_S, data));
    ResponseCode::NoError
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use proptest::prelude::*;
    use std::str::FromStr;

    const GIVEN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);

    /// Permits `.example`, knows `localhost`, counts what it was asked.
    #[derive(Default)]
    struct Fake {
        addresses_given: usize,
    }

    impl Names for Fake {
        fn decide(&mut self, name: &Host) -> Verdict {
            match name.as_str() {
                "localhost" => Verdict::Localhost,
                name if name.ends_with(".example") => Verdict::Permitted,
                _ => Verdict::Absent,
            }
        }

        fn find_address(&mut self, _: &Host) -> Option<Ipv4Addr> {
            self.addresses_given += 1;
            Some(GIVEN)
        }
    }

    fn ask(name: &str, record_type: RecordType) -> (Message, usize) {
        ask_name(Name::from_ascii(name).unwrap(), record_type)
    }

    fn ask_name(name: Name, record_type: RecordType) -> (Message, usize) {
        let mut query = Message::query();
        query.add_query(Query::query(name, record_type));
        let mut names = Fake::default();
        let reply = answer(&query.to_vec().unwrap(), &mut names).unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.metadata.id, query.metadata.id);
        assert_eq!(reply.queries, query.queries);
        (reply, names.addresses_given)
    }

    #[test]
    fn a_permitted_name_has_an_a_record_and_nothing_else() {
        let (reply, _) = ask("API.example.", RecordType::A);
        assert_eq!(reply.answers[0].data, RData::A(A(GIVEN)));
        assert_eq!(reply.queries[0].name().to_string(), "API.example.", "the spelling of the question");
        let silent =
            [RecordType::AAAA, RecordType::SVCB, RecordType::HTTPS, RecordType::TXT, RecordType::NULL];
        for record_type in silent {
            let (reply, given) = ask("api.example.", record_type);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{record_type}");
            assert!(reply.answers.is_empty(), "{record_type}");
            assert_eq!(given, 0, "{record_type} must not use up an address");
        }
    }

    #[test]
    fn localhost_is_the_guest_itself() {
        assert_eq!(ask("localhost.", RecordType::A).0.answers[0].data, RData::A(A(Ipv4Addr::LOCALHOST)));
        let (reply, given) = ask("localhost.", RecordType::AAAA);
        assert_eq!(reply.answers[0].data, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)));
        assert_eq!(given, 0);
    }

    #[test]
    fn e8_names_that_may_not_be_looked_up_do_not_exist_whatever_the_type() {
        for record_type in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::HTTPS] {
            let (reply, given) = ask("denied.invalid.", record_type);
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(given, 0);
        }
    }

    #[test]
    fn c18_a_name_with_a_nul_does_not_exist() {
        let name = Name::from_labels([&b"api\0"[..], b"evil", b"example"]).unwrap();
        let (reply, given) = ask_name(name, RecordType::A);
        assert_eq!(given, 0);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn questions_of_another_kind_are_answered_with_their_error() {
        let mut none = Message::query();
        let name = Name::from_str("api.example.").unwrap();
        let question = Query::query(name.clone(), RecordType::A);
        let mut two = Message::query();
        two.add_query(question.clone());
        two.add_query(question.clone());
        let mut update = Message::new(1, MessageType::Query, OpCode::Update);
        update.add_query(question.clone());
        let mut chaos = Message::query();
        chaos.add_query(question.clone().set_query_class(DNSClass::CH).clone());
        none.queries.clear();
        for (message, code) in [
            (none, ResponseCode::FormErr),
            (two, ResponseCode::FormErr),
            (update, ResponseCode::NotImp),
            (chaos, ResponseCode::NXDomain),
        ] {
            let reply = answer(&message.to_vec().unwrap(), &mut Fake::default()).unwrap();
            assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, code);
        }
        let mut response = Message::response(1, OpCode::Query);
        response.add_query(question);
        assert_eq!(
            answer(&response.to_vec().unwrap(), &mut Fake::default()),
            None,
            "answers are not answered"
        );
    }

    proptest! {
        #[test]
        fn e8_no_packet_breaks_the_parser(packet in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = answer(&packet, &mut Fake::default());
        }
    }
}
