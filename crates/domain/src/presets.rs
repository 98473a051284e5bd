//! The catalogue of well-known secret names: where such a key may go, in which headers, and what its placeholder
//! looks like.
//!
//! A secret set under one of these names is bound to these hosts unless the caller names others. A name that is
//! not here and has no hosts is stored and never swapped.

/// What is known about one logical key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Logical key, as programs look it up in their environment.
    pub name: &'static str,
    /// Host patterns.
    pub hosts: &'static [&'static str],
    /// Lower-case header names, beyond those that carry any key (`authorization`, `x-api-key`, …).
    pub slots: &'static [&'static str],
    /// What real keys begin with, so that programs which check the form accept the placeholder.
    pub placeholder_prefix: &'static str,
}

/// Prefix of placeholders of names that are not in the catalogue.
pub const GENERIC_PREFIX: &str = "miosa-tok-";

macro_rules! catalogue {
    ($($name:literal => [$($host:literal),+], [$($slot:literal),*], $prefix:literal;)+) => {
        /// Every preset, in the order of their names.
        pub const CATALOGUE: &[Preset] = &[$(Preset {
            name: $name,
            hosts: &[$($host),+],
            slots: &[$($slot),*],
            placeholder_prefix: $prefix,
        }),+];
    };
}

catalogue! {
    "ANTHROPIC_API_KEY" => ["api.anthropic.com"], [], "sk-ant-api03-";
    "ANTHROPIC_AUTH_TOKEN" => ["api.anthropic.com"], [], "sk-ant-oat01-";
    "BRAVE_API_KEY" => ["api.search.brave.com"], ["x-subscription-token"], "BSA";
    "CEREBRAS_API_KEY" => ["api.cerebras.ai"], [], "csk-";
    "CLOUDFLARE_API_TOKEN" => ["api.cloudflare.com"], [], "";
    "COHERE_API_KEY" => ["api.cohere.com", "api.cohere.ai"], [], "";
    "DATADOG_API_KEY" => ["*.datadoghq.com", "*.datadoghq.eu"], ["dd-api-key"], "";
    "DEEPSEEK_API_KEY" => ["api.deepseek.com"], [], "sk-";
    "ELEVENLABS_API_KEY" => ["api.elevenlabs.io"], ["xi-api-key"], "sk_";
    "EXA_API_KEY" => ["api.exa.ai"], [], "";
    "FIRECRAWL_API_KEY" => ["api.firecrawl.dev"], [], "fc-";
    "FIREWORKS_API_KEY" => ["api.fireworks.ai"], [], "fw_";
    "GEMINI_API_KEY" => ["generativelanguage.googleapis.com"], [], "AIza";
    "GH_TOKEN" => ["api.github.com", "github.com", "uploads.github.com", "*.githubusercontent.com", "ghcr.io"], [], "ghp_";
    "GITHUB_TOKEN" => ["api.github.com", "github.com", "uploads.github.com", "*.githubusercontent.com", "ghcr.io"], [], "ghp_";
    "GITLAB_TOKEN" => ["gitlab.com"], [], "glpat-";
    "GOOGLE_API_KEY" => ["generativelanguage.googleapis.com"], [], "AIza";
    "GROQ_API_KEY" => ["api.groq.com"], [], "gsk_";
    "HF_TOKEN" => ["huggingface.co", "*.huggingface.co", "*.hf.co"], [], "hf_";
    "HUGGINGFACE_API_KEY" => ["huggingface.co", "*.huggingface.co", "*.hf.co"], [], "hf_";
    "LANGSMITH_API_KEY" => ["api.smith.langchain.com", "eu.api.smith.langchain.com"], [], "lsv2_pt_";
    "LINEAR_API_KEY" => ["api.linear.app"], [], "lin_api_";
    "MISTRAL_API_KEY" => ["api.mistral.ai", "codestral.mistral.ai"], [], "";
    "NOTION_API_KEY" => ["api.notion.com"], [], "ntn_";
    "NPM_TOKEN" => ["registry.npmjs.org"], [], "npm_";
    "OPENAI_API_KEY" => ["api.openai.com"], [], "sk-proj-";
    "OPENROUTER_API_KEY" => ["openrouter.ai"], [], "sk-or-v1-";
    "PERPLEXITY_API_KEY" => ["api.perplexity.ai"], [], "pplx-";
    "PINECONE_API_KEY" => ["api.pinecone.io", "*.pinecone.io"], [], "pcsk_";
    "PYPI_TOKEN" => ["upload.pypi.org"], [], "pypi-";
    "REPLICATE_API_TOKEN" => ["api.replicate.com"], [], "r8_";
    "RESEND_API_KEY" => ["api.resend.com"], [], "re_";
    "SENDGRID_API_KEY" => ["api.sendgrid.com"], [], "SG.";
    "SENTRY_AUTH_TOKEN" => ["sentry.io", "*.sentry.io"], [], "sntrys_";
    "SLACK_BOT_TOKEN" => ["slack.com", "*.slack.com"], [], "xoxb-";
    "STRIPE_API_KEY" => ["api.stripe.com", "files.stripe.com"], [], "sk_test_";
    "STRIPE_SECRET_KEY" => ["api.stripe.com", "files.stripe.com"], [], "sk_test_";
    "SUPABASE_ACCESS_TOKEN" => ["api.supabase.com"], [], "sbp_";
    "TAVILY_API_KEY" => ["api.tavily.com"], [], "tvly-";
    "TOGETHER_API_KEY" => ["api.together.xyz", "api.together.ai"], [], "";
    "VERCEL_TOKEN" => ["api.vercel.com"], [], "";
    "VOYAGE_API_KEY" => ["api.voyageai.com"], [], "pa-";
    "XAI_API_KEY" => ["api.x.ai"], [], "xai-";
}

/// The preset of a logical key. Names of environment variables are case-sensitive.
pub fn find(name: &str) -> Option<&'static Preset> {
    let index = CATALOGUE.binary_search_by(|preset| preset.name.cmp(name)).ok()?;
    Some(&CATALOGUE[index])
}

/// What a placeholder for this logical key begins with.
pub fn placeholder_prefix(name: &str) -> &'static str {
    match find(name) {
        Some(preset) if !preset.placeholder_prefix.is_empty() => preset.placeholder_prefix,
        _ => GENERIC_PREFIX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_name::Pattern;

    #[test]
    fn the_catalogue_is_in_order_and_valid() {
        assert!(CATALOGUE.windows(2).all(|pair| pair[0].name < pair[1].name));
        for preset in CATALOGUE {
            for host in preset.hosts {
                assert!(Pattern::parse(host).is_ok_and(|pattern| pattern.to_string() == *host), "{host}");
            }
            for slot in preset.slots {
                assert_eq!(*slot, slot.to_ascii_lowercase());
            }
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            assert!(preset.placeholder_prefix.bytes().all(is_allowed), "{}", preset.name);
        }
    }

    #[test]
    fn the_seeds_examples_are_known() {
        assert_eq!(find("OPENAI_API_KEY").unwrap().hosts, ["api.openai.com"]);
        assert!(find("GITHUB_TOKEN").unwrap().hosts.contains(&"api.github.com"));
        assert_eq!(find("EHR_API_KEY"), None);
        assert_eq!(find("openai_api_key"), None);
        assert_eq!(placeholder_prefix("OPENAI_API_KEY"), "sk-proj-");
        assert_eq!(placeholder_prefix("EHR_API_KEY"), GENERIC_PREFIX);
        assert_eq!(placeholder_prefix("MISTRAL_API_KEY"), GENERIC_PREFIX);
    }
}
