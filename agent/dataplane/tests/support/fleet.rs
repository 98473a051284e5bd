//! A fleet's certificate authority, small enough for a test.

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};

pub(crate) struct Fleet {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root_pem: String,
}

pub(crate) struct Leaf {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), root_pem }
    }

    pub(crate) fn leaf(&self, dns_names: &[&str], uri: Option<&str>) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = params(dns_names, uri).signed_by(&key, &self.issuer).unwrap();
        Leaf { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    pub(crate) fn sign(&self, request_pem: &str, dns_names: &[&str], uri: Option<&str>) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem).unwrap();
        request.params = params(dns_names, uri);
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

fn params(dns_names: &[&str], uri: Option<&str>) -> CertificateParams {
    let names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    if let Some(uri) = uri {
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri).unwrap()));
    }
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}
