//! One repository, as it is filled.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Repository;
use super::contents::{CONFIG, LAYER, named, with};
use super::plan::{Dialect, Lie, Place, Shape};
use crate::support::random::Random;
use crate::support::{Client, Content, DOCKER_LIST};

/// Images that are in several repositories.
const COMMON: u64 = 2;

pub(super) struct Filling<'a> {
    pub(super) client: &'a Client,
    pub(super) name: &'a str,
    pub(super) random: Random,
    /// What there is so far.
    pub(super) repository: Repository,
    /// The manifests that there are.
    pub(super) stored: Vec<Content>,
    /// The tags whose name is given by a subject.
    pub(super) taken: BTreeSet<String>,
    /// How many different manifests were made.
    pub(super) made: usize,
}

impl<'a> Filling<'a> {
    /// Begins with the blobs.
    pub(super) async fn new(client: &'a Client, name: &'a str, seed: u64) -> Self {
        for blob in [CONFIG, LAYER] {
            client.push_blob(name, blob.as_bytes()).await;
        }
        Self {
            client,
            name,
            random: Random::new(seed),
            repository: Repository::default(),
            stored: Vec::new(),
            taken: BTreeSet::new(),
            made: 0,
        }
    }

    pub(super) async fn with(mut self, dialects: &[Dialect]) -> Repository {
        for dialect in dialects {
            // Boxed, since each is large.
            Box::pin(self.push(*dialect)).await;
        }
        self.repository
    }

    async fn push(&mut self, dialect: Dialect) {
        match dialect {
            Dialect::Image => {
                let image = self.image();
                self.tag(&image).await;
            }
            Dialect::Docker => {
                let subject = self.subject();
                self.seem(&subject);
                let image = self.docker_image().changed(|image| image["subject"] = subject.descriptor());
                self.tag(&image).await;
            }
            Dialect::SecondTag => {
                let content = self.random.pick(&self.stored).clone();
                self.tag(&content).await;
            }
            Dialect::Common => self.common().await,
            Dialect::Reference(place) => self.reference_at(place).await,
            Dialect::Malformed => {
                let subject = self.subject();
                self.seem(&subject);
                let malformed = json!({"digest": subject.digest.to_uppercase(), "size": 1});
                let image = self.image().changed(|image| image["reference"] = malformed);
                self.tag(&image).await;
            }
            Dialect::Subject(shape) => {
                let subject = self.subject();
                let referrer = self.referrer(shape, &subject).await;
                self.tag(&referrer).await;
            }
            Dialect::Fallback => self.fallback().await,
            Dialect::TaggedFallback(shape) => {
                let (subject, tag) = self.subject_without_tag("");
                let referrer = self.referrer(shape, &subject).await;
                self.tag(&referrer).await;
                self.list(&tag, &subject, &[&referrer], &[]).await;
            }
            Dialect::Lie(lie) => self.lie(lie).await,
            Dialect::Gone => self.gone().await,
            Dialect::Artifact(media_type) => self.artifact(media_type).await,
            Dialect::Index => {
                let index = self.index().await;
                self.tag(&index).await;
            }
            Dialect::DockerList => {
                let images = [self.docker_image(), self.docker_image()];
                for image in &images {
                    self.store(image).await;
                }
                let list = Content::index(&images.each_ref());
                let list = Content::new(DOCKER_LIST, &with(&list.value, "mediaType", DOCKER_LIST.into()));
                self.link_parts(&list);
                self.tag(&list).await;
            }
            Dialect::NestedIndex => {
                let (inner, image) = (self.index().await, self.image());
                self.store(&inner).await;
                self.store(&image).await;
                let outer = Content::index(&[&inner, &image]);
                self.link_parts(&outer);
                self.tag(&outer).await;
            }
            Dialect::Attestation => self.attestation().await,
            Dialect::Cosign(suffix) => self.cosign(suffix).await,
            Dialect::Chain => {
                let subject = self.subject();
                let first = self.referrer(Shape::Manifest, &subject).await;
                self.tag(&first).await;
                let second = self.referrer(Shape::Manifest, &first).await;
                self.tag(&second).await;
            }
            Dialect::Deleted => self.deleted().await,
        }
    }

    async fn common(&mut self) {
        let number = self.random.below(COMMON);
        let image = named(&Content::image(CONFIG, LAYER), &format!("common {number}"));
        let referrer = image.changed(|manifest| manifest["subject"] = image.descriptor());
        self.tag(&image).await;
        self.link(&image.digest, &referrer, "subject");
        self.tag(&referrer).await;
    }

    async fn reference_at(&mut self, place: Place) {
        let (reference, subjects) = self.reference();
        let descriptor = Content::image(CONFIG, LAYER).value["layers"][0].clone();
        let content = match place {
            Place::Manifest | Place::Config | Place::Layer | Place::Blob => self.image(),
            Place::DockerManifest => self.docker_image(),
            Place::Index | Place::IndexEntry => self.index_of_new().await,
        };
        let content = content.changed(|manifest| match place {
            Place::Manifest | Place::DockerManifest | Place::Index => manifest["reference"] = reference,
            Place::Config => manifest["config"]["reference"] = reference,
            Place::Layer => manifest["layers"][0]["reference"] = reference,
            Place::Blob => manifest["blobs"] = json!([with(&descriptor, "reference", reference)]),
            Place::IndexEntry => manifest["manifests"][0]["reference"] = reference,
        });
        for subject in &subjects {
            self.link(&subject.digest, &content, "reference");
        }
        self.link_parts(&content);
        self.tag(&content).await;
    }

    /// One descriptor, a list of them, or one in another; and what it refers to.
    fn reference(&mut self) -> (Value, Vec<Content>) {
        let subjects = [self.subject(), self.subject(), self.subject()];
        let [first, second, third] = subjects.each_ref().map(Content::descriptor);
        let (reference, count) = match self.random.below(4) {
            0 => (first, 1),
            1 => (json!([first, second]), 2),
            2 => (with(&first, "reference", second), 2),
            _ => (json!([with(&first, "reference", json!([with(&second, "reference", third)]))]), 3),
        };
        (reference, subjects[..count].to_vec())
    }

    async fn fallback(&mut self) {
        let (subject, tag) = self.subject_without_tag("");
        let mut referrers = Vec::new();
        for _ in 0..=self.random.place(2) {
            for shape in [Shape::Manifest, Shape::Index] {
                let referrer = self.referrer(shape, &subject).await;
                self.store(&referrer).await;
                referrers.push(referrer);
            }
        }
        // As clients do, with each of them anew.
        self.client.push_as(self.name, &tag, &Content::index(&[&referrers[0]])).await;
        self.list(&tag, &subject, &referrers.iter().collect::<Vec<_>>(), &[]).await;
    }

    async fn gone(&mut self) {
        let (subject, tag) = self.subject_without_tag("");
        let mut referrers = Vec::new();
        for _ in 0..2 {
            let referrer = self.image_about(&subject);
            self.client.push(self.name, &referrer).await;
            referrers.push(referrer);
        }
        self.link(&subject.digest, &referrers[0], "subject");
        self.list(&tag, &subject, &[&referrers[0]], &[&referrers[1]]).await;
        self.delete(&referrers[1]).await;
    }

    async fn deleted(&mut self) {
        let image = self.image();
        let referrer = self.image_about(&image);
        for (tag, content) in [("latest", &image), ("signature", &referrer)] {
            self.client.push_as(self.name, tag, content).await;
        }
        for content in [&image, &referrer] {
            self.seem(content);
            self.delete(content).await;
        }
    }

    async fn lie(&mut self, lie: Lie) {
        let (subject, tag) = self.subject_without_tag("");
        let liar = match lie {
            Lie::AnotherSubject => {
                let mut another = self.subject();
                while another.digest == subject.digest {
                    another = self.subject();
                }
                self.referrer(Shape::Manifest, &another).await
            }
            Lie::NoSubject => self.image(),
            Lie::Reference => {
                let liar = self.image().changed(|manifest| manifest["reference"] = subject.descriptor());
                self.link(&subject.digest, &liar, "reference");
                liar
            }
        };
        self.store(&liar).await;
        if self.random.coin() {
            let honest = self.referrer(Shape::Manifest, &subject).await;
            self.store(&honest).await;
            self.list(&tag, &subject, &[&honest], &[&liar]).await;
        } else {
            self.list(&tag, &subject, &[], &[&liar]).await;
        }
    }

    /// As an artifact manifest; where the registry refuses those, as an image manifest, as oras does then.
    async fn artifact(&mut self, media_type: &str) {
        let (subject, image) = (self.subject(), self.image());
        let artifact = json!({
            "mediaType": media_type,
            "artifactType": "application/vnd.example.sbom",
            "annotations": image.value["annotations"],
            "blobs": image.value["layers"],
            "subject": subject.descriptor(),
        });
        let artifact = Content::new(media_type, &artifact);
        let answer = self.client.put_manifest(self.name, &artifact.digest, &artifact).await;
        let artifact = if answer.status == StatusCode::CREATED {
            artifact
        } else {
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
            self.image_about(&subject)
        };
        self.link(&subject.digest, &artifact, "subject");
        self.tag(&artifact).await;
    }

    async fn attestation(&mut self) {
        let (mut parts, mut annotations) = (Vec::new(), Vec::new());
        for _ in 0..=self.random.place(2) {
            let image = self.image();
            let has_subject = self.random.coin();
            let attestation = self.image().changed(|manifest| {
                manifest["layers"][0]["mediaType"] = "application/vnd.in-toto+json".into();
                if has_subject {
                    manifest["artifactType"] = "application/vnd.docker.attestation.manifest.v1+json".into();
                    manifest["subject"] = image.descriptor();
                }
            });
            self.link(&image.digest, &attestation, "attestation");
            if has_subject {
                self.link(&image.digest, &attestation, "subject");
            }
            annotations.push((
                parts.len() + 1,
                json!({
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": image.digest,
                }),
            ));
            self.store(&image).await;
            self.store(&attestation).await;
            parts.extend([image, attestation]);
        }
        let index = Content::index(&parts.iter().collect::<Vec<_>>()).changed(|index| {
            for (place, annotations) in annotations {
                index["manifests"][place]["annotations"] = annotations;
            }
        });
        self.link_parts(&index);
        self.tag(&index).await;
    }

    async fn cosign(&mut self, suffix: &str) {
        let (subject, tag) = self.subject_without_tag(&format!(".{suffix}"));
        // Now and then with a subject as well.
        let referrer = if self.random.below(3) == 0 {
            self.referrer(Shape::Manifest, &subject).await
        } else {
            self.image()
        };
        self.link(&subject.digest, &referrer, "cosign");
        self.tag_as(&tag, &referrer).await;
    }
}
