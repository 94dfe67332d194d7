//! Errors of the platform's own operations: each is what its standard prescribes, and code can tell
//! them apart.

mod harness;

use harness::function;

/// Runs each of `jobs`, [expected constructor and name, throwing code], and shows those with
/// another result.
const REPORT: &str = r#"
export default {
    async fetch() {
        const wrong = {};
        for (const [name, [expected, work]] of Object.entries(jobs)) {
            let got = "no error";
            try {
                await work();
            } catch (error) {
                got = error instanceof Error ? `${error.constructor.name} ${error.name}` : `thrown: ${error}`;
            }
            if (got !== expected) wrong[name] = got;
        }
        return Response.json(wrong);
    },
};"#;

async fn all_as_expected(jobs: &str) {
    let worker = function(&format!("const jobs = {jobs};{REPORT}")).await;
    assert_eq!(worker.get("/").await.text(), "{}");
    // Errors cost no more than their call.
    assert_eq!(worker.get("/").await.text(), "{}");
}

#[tokio::test]
async fn errors_of_the_platform_have_their_standards_names() {
    all_as_expected(
        r#"{
        atob: ["DOMException InvalidCharacterError", () => atob("*&^")],
        btoa: ["DOMException InvalidCharacterError", () => btoa("\u65e5")],
        random: ["DOMException QuotaExceededError", () => crypto.getRandomValues(new Uint8Array(70000))],
        floats: ["DOMException TypeMismatchError", () => crypto.getRandomValues(new Float32Array(1))],
        clone: ["DOMException DataCloneError", () => structuredClone(() => 1)],
        gunzip: ["TypeError TypeError", () => {
            const unpacked = new Blob(["no"]).stream().pipeThrough(new DecompressionStream("gzip"));
            return new Response(unpacked).text();
        }],
        url: ["TypeError TypeError", () => new URL("http://")],
        fatal: ["TypeError TypeError", () => new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array([255]))],
        label: ["RangeError RangeError", () => new TextDecoder("nope")],
        timeout: ["DOMException TimeoutError", async () => {
            const signal = AbortSignal.timeout(1);
            await new Promise((go) => signal.onabort = go);
            signal.throwIfAborted();
        }],
    }"#,
    )
    .await;
}

#[tokio::test]
async fn errors_of_cryptography_have_their_standards_names() {
    all_as_expected(
        r#"(() => {
        const subtle = crypto.subtle;
        const aes = (name, usages) => subtle.generateKey({ name, length: 256 }, true, usages);
        const raw = (size, algorithm, usages) => () => subtle.importKey("raw", new Uint8Array(size), algorithm, true, usages);
        const P256 = { name: "ECDSA", namedCurve: "P-256" };
        const P384 = { name: "ECDSA", namedCurve: "P-384" };
        const pkcs8 = async () => {
            const { privateKey } = await subtle.generateKey(P256, true, ["sign", "verify"]);
            return subtle.exportKey("pkcs8", privateKey);
        };
        return {
            tag: ["DOMException OperationError", async () => {
                const key = await aes("AES-GCM", ["encrypt", "decrypt"]);
                await subtle.decrypt({ name: "AES-GCM", iv: new Uint8Array(12) }, key, new Uint8Array(40));
            }],
            padding: ["DOMException OperationError", async () => {
                const key = await aes("AES-CBC", ["encrypt", "decrypt"]);
                await subtle.decrypt({ name: "AES-CBC", iv: new Uint8Array(16) }, key, new Uint8Array(17));
            }],
            usage: ["DOMException InvalidAccessError", async () => {
                const key = await aes("AES-GCM", ["encrypt"]);
                await subtle.decrypt({ name: "AES-GCM", iv: new Uint8Array(12) }, key, new Uint8Array(40));
            }],
            digest: ["DOMException NotSupportedError", () => subtle.digest("MD5", new Uint8Array(1))],
            noUsage: ["DOMException SyntaxError", () => subtle.generateKey({ name: "AES-GCM", length: 256 }, true, [])],
            point: ["DOMException DataError", raw(3, P256, ["verify"])],
            ed25519: ["DOMException DataError", raw(3, "Ed25519", ["verify"])],
            aes: ["DOMException DataError", raw(5, "AES-GCM", ["encrypt"])],
            hmac: ["DOMException DataError", raw(0, { name: "HMAC", hash: "SHA-256" }, ["sign"])],
            curve: ["DOMException DataError", async () => subtle.importKey("pkcs8", await pkcs8(), P384, true, ["sign"])],
            algorithm: ["DOMException DataError", async () => {
                await subtle.importKey("pkcs8", await pkcs8(), { name: "RSA-PSS", hash: "SHA-256" }, true, ["sign"]);
            }],
            zeros: ["DOMException DataError", () => subtle.importKey("pkcs8", new Uint8Array(10), P256, true, ["sign"])],
            receiver: ["TypeError TypeError", async () => {
                // A rejected promise, not an exception: `catch` exists.
                await subtle.digest.call({}, "SHA-256", new Uint8Array(1)).catch((error) => { throw error; });
            }],
        };
    })()"#,
    )
    .await;
}
